"""Looking at what RL makes of each token: `--dump-tokens N`, as colours on a terminal, as a page, and as numbers."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from rich.text import Text
from torch import Tensor

from cutaway.model.weights import write_text
from cutaway.objectives.kl import kl
from cutaway.objectives.policy import Tokens
from cutaway.rl.rollout import Minibatch
from cutaway.tokenization.dump import token_label
from cutaway.tokenization.tokenizer import Tokenizer

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tokens of RL</title><style>
body {{ font: 15px/2 system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222; background: #fff }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere }}
span {{ border: 1px solid #ccc; border-radius: 3px; padding: 1px 2px; color: #777 }}
span.u {{ background: #cdeccd; border-color: #7a7; color: #030 }}
span.d {{ background: #f3cfcf; border-color: #b77; color: #400 }}
span.z {{ color: #222 }}
span.c {{ border-style: dashed; border-width: 2px }}
</style></head><body>
<h1>Tokens of RL</h1><p>Green: the policy wrote the token and is to make it likelier. Red: less likely. White: its
advantage is 0. Grey: prompt, or what a tool said. A dashed border: clipped, no gradient. Hover over a token for its
numbers; they are in rl_tokens.jsonl too.</p>
{rows}
</body></html>
"""


@dataclass(frozen=True)
class TokenRow:
    """All that one update knows of one token; log-probabilities and entropy in nats. None is what the algorithm does
    without."""

    row: int
    token: int
    text: str
    own: bool
    trained: bool
    sampler_logprob: float
    old_logprob: float
    logprob: float
    ref_logprob: float | None
    ratio: float
    advantage: float
    kl_k3: float | None
    entropy: float
    value: float | None
    """Of the state that the token was chosen in, when the answer was written."""
    returns: float | None
    clipped: bool
    loss: float


def token_rows(
    batch: Minibatch,
    tokens: Tokens,
    entropy: Float[Tensor, "batch seq"],
    per_token: Float[Tensor, "batch seq"],
    clipped: Bool[Tensor, "batch seq"],
    tokenizer: Tokenizer,
    most: int,
) -> list[TokenRow]:
    """The tokens of the first `most` rows of a micro-batch; the first of each, which nothing predicts, is left out."""
    logprobs, ratio = tokens.logprobs.detach(), tokens.ratio.detach()
    distances = None if batch.ref_logprobs is None else kl(logprobs, batch.ref_logprobs)

    def maybe(values: Tensor | None, place: tuple[int, int]) -> float | None:
        return None if values is None else float(values[place])

    found = []
    for row in range(min(most, len(batch.own))):
        length = int(batch.own[row].nonzero()[-1]) + 1 if batch.own[row].any() else 0
        for t in range(length):
            token, place = int(batch.targets[row, t]), (row, t)
            found.append(
                TokenRow(
                    row=row,
                    token=token,
                    text=token_label(token, tokenizer),
                    own=bool(batch.own[place]),
                    trained=bool(batch.mask[place]),
                    sampler_logprob=float(batch.sampler_logprobs[place]),
                    old_logprob=float(tokens.old_logprobs[place]),
                    logprob=float(logprobs[place]),
                    ref_logprob=maybe(batch.ref_logprobs, place),
                    ratio=float(ratio[place]),
                    advantage=float(batch.advantages[place]),
                    kl_k3=maybe(distances, place),
                    entropy=float(entropy[place]),
                    value=maybe(batch.values, place),
                    returns=maybe(batch.returns, place),
                    clipped=bool(clipped[place]),
                    loss=float(torch.where(batch.mask, per_token.detach(), 0.0)[place]),
                )
            )
    return found


def write_dump(rows: Sequence[TokenRow], out: Path) -> list[Text]:
    """`rl_tokens.jsonl` and `rl_tokens.html` in the run directory; gives back the rows for a terminal."""
    lines = [json.dumps(asdict(one), ensure_ascii=False) for one in rows]
    write_text("\n".join(lines) + "\n", out / "rl_tokens.jsonl")
    numbers = sorted({one.row for one in rows})
    blocks = [
        f"<h2>Row {number}</h2>\n<p>{_spans([one for one in rows if one.row == number])}</p>" for number in numbers
    ]
    write_text(_PAGE.format(rows="\n".join(blocks)), out / "rl_tokens.html")
    return [_terminal([one for one in rows if one.row == number]) for number in numbers]


def _kind(one: TokenRow) -> str:
    if not one.trained:
        return ""
    return "u" if one.advantage > 0 else "d" if one.advantage < 0 else "z"


def _spans(rows: Sequence[TokenRow]) -> str:
    spans = []
    for one in rows:
        values = {key: value for key, value in asdict(one).items() if key not in ("row", "text")}
        hint = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        kinds = " ".join(kind for kind in (_kind(one), "c" if one.clipped else "") if kind)
        spans.append(f'<span class="{kinds}" title="{html.escape(hint)}">{html.escape(one.text)}</span>')
        if "↵" in one.text:
            spans.append("\n")
    return "".join(spans)


def _terminal(rows: Sequence[TokenRow]) -> Text:
    styles = {"": "dim", "u": "black on green", "d": "black on red", "z": ""}
    line = Text()
    for one in rows:
        line.append(one.text, style=styles[_kind(one)] + (" underline" if one.clipped else ""))
        line.append("\n" if "↵" in one.text else "|", style="dim")
    return line
