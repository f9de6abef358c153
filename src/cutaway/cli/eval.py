"""`cutaway eval`: scores with intervals, the chance level and plain words."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cutaway.cli.common import parse
from cutaway.errors import UserError

log = logging.getLogger("cutaway")


@dataclass(frozen=True)
class EvalFlags:
    """Score a model. A task is a file, or one of ceval, cmmlu, mmlu, arc_easy, arc_challenge, hellaswag, piqa,
    openbookqa (from the hub), identity, refusal, format (built in). What a file is follows from its records:
    multiple choice; text, for bits per byte; conversations, for bits per byte of the assistant's tokens, or, with
    `--how calls`, for its tool calls; records with `gt` or `verifier`, to be answered and judged."""

    run: tyro.conf.Positional[str]
    """Run directory, or any model directory of the Llama or Qwen3 kind."""
    task: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME_OR_FILE...")] = ()
    """What to score it on; several may be given."""
    json: str | None = None
    """Write all results, every item's own included, to this file too."""
    save: bool = True
    """Keep the results in RUN/evals, where `cutaway report` finds them."""
    how: Literal["auto", "choice", "text", "answers", "calls"] = "auto"
    """What to do with a file; `auto` follows from its first record."""
    style: Literal["auto", "letter", "text", "bare"] = "auto"
    """Multiple choice: score answer letters, the choices after a question, or the choices as the text going on; `auto`
    is what is usual for the set, and text for others."""
    shots: int = 0
    """Multiple choice: worked examples in front of each question."""
    fewshot: str | None = None
    """Multiple choice: file of worked examples; default: eval_fewshot beside the task, or the named set's own."""
    chat: bool = False
    """Multiple choice: ask in the model's chat format."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic; bf16 is faster and moves likelihoods in the third digit."""
    limit: int | None = None
    """Only the first so many items or tasks."""
    megabytes: float | None = None
    """Text: only the first so many megabytes."""
    samples: int = 1
    """Answers to each task; one is the likeliest, several are drawn as `cutaway chat` draws them."""
    k: tuple[int, ...] = (1,)
    """pass@k: the chance that one of k answers is right; needs as many samples."""
    temperature: float | None = None
    """Of the answers, in place of the above."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    seed: int = 0
    """Of the answers."""
    name: str | None = None
    """What the model is called, for tasks about its identity."""
    author: str | None = None
    """Who made it, for the same."""
    skip_bad: int = 0
    """Bad records allowed a file; each is logged."""
    rope_scaling: str = ""
    """Stretch the context beyond the trained length, such as yarn:4 for four times; default: as config.json has it."""


def main(argv: Sequence[str]) -> int:
    """Score, print tables, keep results."""
    flags = parse(EvalFlags, argv, prog="cutaway eval")
    if not flags.task:
        raise UserError("cutaway eval: --task is missing, name a file or a set")
    for name in ("limit", "samples", "max_new_tokens"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"cutaway eval: --{name.replace('_', '-')} is {value}, must be 1 or more")
    if flags.shots < 0:
        raise UserError(f"cutaway eval: --shots is {flags.shots}, must be 0 or more")
    if not flags.k or min(flags.k) < 1 or max(flags.k) > flags.samples:
        raise UserError(f"cutaway eval: --k must be 1 to {flags.samples}, the number of --samples")
    from cutaway.evals.evaluate import EvalSettings, Subject, evaluate, kind_of
    from cutaway.evals.picture import draw_choice
    from cutaway.evals.results import save_result, to_json
    from cutaway.evals.tables import tables_of, to_markdown
    from cutaway.model.weights import write_text
    from cutaway.training.precision import DTYPE_NAMES

    given = {name: value for name, value in (("name", flags.name), ("author", flags.author)) if value}
    settings = EvalSettings(
        how=flags.how,
        style=None if flags.style == "auto" else flags.style,
        shots=flags.shots,
        fewshot=flags.fewshot,
        chat=flags.chat,
        dtype=next(dtype for dtype, name in DTYPE_NAMES.items() if name == flags.dtype),
        limit=flags.limit,
        megabytes=flags.megabytes,
        samples=flags.samples,
        ks=flags.k,
        temperature=flags.temperature,
        max_new_tokens=flags.max_new_tokens,
        seed=flags.seed,
        names=given,
        skip_bad=flags.skip_bad,
        rope_scaling=flags.rope_scaling,
    )
    for task in flags.task:
        kind_of(task, flags.how)  # a mistake in the last task should not wait for the first one's hour
    subject = Subject(Path(flags.run), settings)
    found = []
    for task in flags.task:
        result = evaluate(subject, task, Ticker())
        found.append(result)
        print("\n".join(to_markdown(table) for table in tables_of(result)), flush=True)
        if flags.save:
            path = save_result(result, subject.run)
            if result.summary["kind"] == "choice":
                draw_choice(result, path.with_suffix(".png"))
    if flags.json is not None:
        table = {"run": flags.run, "results": [to_json(result) for result in found]}
        write_text(json.dumps(table, ensure_ascii=False) + "\n", Path(flags.json))
    return 0


class Ticker:
    """How far a task is: one line that is written over on a terminal, else one every ten seconds."""

    def __init__(self) -> None:
        self.printed = self.started = time.monotonic()

    def __call__(self, task: str, done: int, total: int) -> None:
        live, now = sys.stderr.isatty(), time.monotonic()
        if now - self.printed < (0.2 if live else 10.0) and done < total:
            return
        self.printed = now
        left = (now - self.started) / max(1, done) * (total - done)
        line = f"{task}: {done} of {total}, {left:.0f} s left"
        if live:
            print(f"\r\x1b[K{line if done < total else ''}", end="", file=sys.stderr, flush=True)
        elif done < total:
            log.info(line)
