"""Models that say how good an answer is: a reward model here, or a judge behind an OpenAI-compatible server."""

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from cutaway.errors import UserError
from cutaway.generation.http import ServerError, post_json
from cutaway.model.reward import RewardModel
from cutaway.tokenization.foreign import answered_ids
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.verifiers.numeric import find_number

ASKED = (
    "You judge the last answer of a conversation. Reply with one whole number from 0 (wrong or useless) to 10 (right "
    "and well put), and nothing else."
)
_OF_TEN = re.compile(r"\s*(?:/|／|\bout of\b|\bof\b)\s*10\b", re.IGNORECASE)
"""What a judge likes to add: `8/10` is no fraction here."""
AT_ONCE, ROWS_AT_ONCE = 8, 32


class RewardScorer:
    """A reward model's score of each dialogue, read at its last token: the end of the answer's turn.

    The dialogue is rendered by the policy's tokenizer, which must be the reward model's too (`rl/setup.py`).
    """

    def __init__(self, model: RewardModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @torch.no_grad()
    def __call__(self, dialogues: Sequence[Sequence[Message]]) -> list[float]:
        longest, device = self.model.config.max_position_embeddings, self.model.score.weight.device
        rows = [answered_ids(dialogue, self.tokenizer) for dialogue in dialogues]
        scores = [math.nan] * len(rows)
        order = sorted((i for i, row in enumerate(rows) if len(row) <= longest), key=lambda i: len(rows[i]))
        for start in range(0, len(order), ROWS_AT_ONCE):
            part = order[start : start + ROWS_AT_ONCE]
            width = len(rows[part[-1]])
            ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in part], device=device)
            ends = torch.tensor([len(rows[i]) - 1 for i in part], device=device)
            found = self.model(ids).gather(1, ends.unsqueeze(1)).squeeze(1)
            for i, value in zip(part, found.tolist(), strict=True):
                scores[i] = value
        return scores


class Judge:
    """Scores in [0, 1]; NaN where the server did not answer or its answer holds no number from 0 to 10."""

    def __init__(self, url: str, model: str, api_key: str | None = None, seconds: float = 60.0) -> None:
        """`url` is the root of the API, such as http://127.0.0.1:8000/v1."""
        if not url.startswith(("http://", "https://")):
            raise UserError(f"judge_url is {url!r}: a server's address begins with http:// or https://")
        self.url, self.model, self.api_key, self.seconds = url.rstrip("/"), model, api_key, seconds

    def __call__(self, dialogues: Sequence[Sequence[Message]]) -> list[float]:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="judge") as pool:
            return list(pool.map(self._score, dialogues))

    def _score(self, dialogue: Sequence[Message]) -> float:
        shown = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in dialogue)
        messages = [{"role": "system", "content": ASKED}, {"role": "user", "content": shown}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 16}
        try:
            found = post_json(f"{self.url}/chat/completions", body, api_key=self.api_key, seconds=self.seconds)
            text = found["choices"][0]["message"]["content"]
        except (ServerError, LookupError, TypeError):
            return math.nan
        number = find_number(_OF_TEN.sub("", str(text)))
        return float(number[0]) / 10 if number is not None and 0 <= number[0] <= 10 else math.nan
