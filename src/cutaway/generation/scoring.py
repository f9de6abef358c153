"""Scores of conversations by a reward model, many in one forward pass."""

from collections.abc import Sequence
from pathlib import Path

import torch

from cutaway.model.reward import load_reward_model
from cutaway.tokenization.foreign import answered_ids
from cutaway.tokenization.messages import Message
from cutaway.tokenization.tokenizer import Tokenizer

PASS_TOKENS = 8192
"""Tokens of one forward pass, padding included (a longer conversation goes alone)."""


class Scorer:
    """A reward model with its tokenizer: `Scorer(directory).score(conversations)`."""

    def __init__(self, directory: str | Path, device: torch.device | str = "cpu") -> None:
        """UserError where the directory holds no reward model."""
        self.model = load_reward_model(directory, device)
        self.tokenizer = Tokenizer.load(directory)

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """How good the last answer of each conversation is; only differences between answers to one prompt say much."""
        return self.score_ids([answered_ids(conversation, self.tokenizer) for conversation in conversations])

    @torch.inference_mode()
    def score_ids(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The same of token ids that end with the answer's last token. Of what is longer than the model's context only
        the end is read."""
        longest = self.model.config.max_position_embeddings
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        device = self.model.score.weight.device
        while order:
            # From the longest down, as many as fit one pass.
            width = min(longest, len(rows[order[-1]]))
            here, order = order[-max(1, PASS_TOKENS // width) :], order[: -max(1, PASS_TOKENS // width)]
            ends = [list(rows[i])[-longest:] for i in here]
            # Padding goes behind, where nothing looks at it.
            padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in ends], device=device)
            places = torch.tensor([len(ids) - 1 for ids in ends], device=device)
            found = self.model(padded)[torch.arange(len(here), device=device), places]
            for i, value in zip(here, found.tolist(), strict=True):
                scores[i] = value
        return scores
