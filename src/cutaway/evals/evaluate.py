"""One model, many tasks: finds out what kind each task is, asks, and gives back results."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

import torch

from cutaway.data.formats import BadCounter, raw_records
from cutaway.data.records import BadRecordError, detect_kind, parse_json
from cutaway.errors import UserError
from cutaway.evals import results, sets
from cutaway.evals.answers import Task, answer, read_call_tasks, read_tasks, summarise_answers
from cutaway.evals.multiple_choice import Asking, Item, Style, language_of, score, summarise
from cutaway.evals.results import Result
from cutaway.evals.text import score_text, summarise_text
from cutaway.generation.conversation import knows_chat
from cutaway.generation.defaults import load_sampling
from cutaway.generation.engine import Engine
from cutaway.generation.sampling import Sampling
from cutaway.model.weights import load_model
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.precision import pick_device

How = Literal["auto", "choice", "text", "answers", "calls"]
Progress = Callable[[str, int, int], None]
BUILTIN = ("identity", "refusal", "format")
SLOTS = 32


@dataclass(frozen=True)
class EvalSettings:
    """How tasks are asked; see the flags of `cutaway eval`."""

    how: How = "auto"
    style: Style | None = None
    shots: int = 0
    fewshot: str | None = None
    chat: bool = False
    dtype: torch.dtype = torch.float32
    limit: int | None = None
    megabytes: float | None = None
    samples: int = 1
    ks: tuple[int, ...] = (1,)
    temperature: float | None = None
    max_new_tokens: int = 256
    seed: int = 0
    names: dict[str, str] = field(default_factory=dict)
    skip_bad: int = 0
    rope_scaling: str = ""


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated."""

    run: Path
    settings: EvalSettings

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.run)

    @cached_property
    def engine(self) -> Engine:
        dtype = None if self.settings.dtype == torch.float32 else self.settings.dtype
        model = load_model(self.run, pick_device(), self.settings.rope_scaling).eval()
        return Engine(model, self.tokenizer, slots=SLOTS, dtype=dtype)

    def with_settings(self, settings: EvalSettings) -> "Subject":
        """The same model, loaded once, asked in another way."""
        other = Subject(self.run, settings)
        vars(other).update(engine=self.engine, tokenizer=self.tokenizer)
        return other


def evaluate(subject: Subject, task: str, progress: Progress | None = None) -> Result:
    """The result of one task: a file, a named multiple-choice set, or one of `BUILTIN`.

    Raises UserError for a task that is none of these, and for what its items lack.
    """
    settings = subject.settings
    name = sets.set_name(task)
    tell = None if progress is None else (lambda done, total: progress(name, done, total))
    match kind_of(task, settings.how):
        case "choice":
            return _choice(subject, task, name, tell)
        case "answers" | "calls" as kind:
            return _answers(subject, task, name, kind, tell)
        case kind:
            model, tokenizer = subject.engine.source, subject.tokenizer
            cache_kind: Literal["pretrain", "sft"] = "sft" if kind == "conversations" else "pretrain"
            scores = score_text(
                model,
                tokenizer,
                name,
                task,
                cache_kind,
                dtype=settings.dtype,
                megabytes=settings.megabytes,
                skip_bad=settings.skip_bad,
                progress=tell,
            )
            return results.of_text(scores, summarise_text(scores))


def kind_of(task: str, how: How) -> Literal["choice", "text", "conversations", "answers", "calls"]:
    """What a task is: by its name, else by the first record of the file. Raises UserError where `how` does not fit."""
    if task in sets.SETS or task in BUILTIN:
        return "choice" if task in sets.SETS else "answers"
    if not Path(task).exists() and Path(task).suffix == "":
        known = ", ".join((*sets.SETS, *BUILTIN))
        raise UserError(f"no task '{task}': neither a file nor one of {known}")
    first = next(iter(raw_records(task)))
    try:
        value = parse_json(first.raw) if isinstance(first.raw, bytes) else first.raw
        if not isinstance(value, dict):
            raise BadRecordError("a record must be a JSON object")
        kind = detect_kind(value)
    except BadRecordError as error:
        raise UserError(f"{task}:{first.line}: {error}") from None
    fitting: dict[str, tuple[str, ...]] = {
        "multiple_choice": ("choice",),
        "pretrain": ("text",),
        "sft": ("text", "calls"),
        "rl": ("answers",),
    }
    if kind not in fitting:
        raise UserError(f"{task}: {kind} records cannot be evaluated (known: {', '.join(fitting)})")
    if how not in ("auto", *fitting[kind]):
        raise UserError(f"{task}: {kind} records can be evaluated as {' or '.join(fitting[kind])}, not as {how}")
    chosen = fitting[kind][0] if how == "auto" else how
    if chosen == "text":
        return "conversations" if kind == "sft" else "text"
    if chosen == "choice":
        return "choice"
    return "calls" if chosen == "calls" else "answers"


def check(task: str, settings: EvalSettings) -> None:
    """UserError for a task that cannot be evaluated, as far as that can be seen without a model and without a network:
    nobody should learn of it after hours of training."""
    kind = kind_of(task, settings.how)
    if kind == "choice" and task not in sets.SETS:
        sets.load(task, settings.skip_bad)
    elif kind in ("answers", "calls"):
        _tasks(task, kind, settings)


def _choice(subject: Subject, task: str, name: str, tell: Callable[[int, int], None] | None) -> Result:
    settings = subject.settings
    bad = BadCounter(settings.skip_bad)
    items = sets.load(task, bad)[: settings.limit]
    asking = Asking(settings.style or sets.style_of(name), language_of(items), settings.shots, settings.chat)
    pool = _pool(task, name, settings)
    model, tokenizer = subject.engine.source, subject.tokenizer
    scored = score(model, tokenizer, name, items, asking, pool, dtype=settings.dtype, progress=tell, bad=bad)
    return results.of_choice(scored, summarise(scored))


def _pool(task: str, name: str, settings: EvalSettings) -> list[Item]:
    """Worked examples: of the file given; else of a named set's own; else of `eval_fewshot` beside the file."""
    if not settings.shots:
        return []
    if settings.fewshot is not None:
        return _lenient(settings.fewshot)
    if task in sets.SETS:
        return sets.load(task, settings.skip_bad, examples=True)
    beside = sorted(Path(task).parent.glob("eval_fewshot.*"))
    return _lenient(str(beside[0])) if beside else []


def _lenient(path: str) -> list[Item]:
    """Worked examples; a bad one among them is left out."""
    return sets.load(path, skip_bad=100)


def _tasks(task: str, kind: str, settings: EvalSettings) -> list[Task]:
    if kind == "calls":
        return read_call_tasks(task, settings.skip_bad)
    if task in BUILTIN:
        with resources.as_file(resources.files("cutaway.evals") / "builtin" / f"{task}.jsonl") as path:
            return read_tasks(path, settings.skip_bad, settings.names)
    return read_tasks(task, settings.skip_bad, settings.names)


def _answers(subject: Subject, task: str, name: str, kind: str, tell: Callable[[int, int], None] | None) -> Result:
    settings = subject.settings
    tasks = _tasks(task, kind, settings)
    if settings.limit is not None:
        tasks = tasks[: settings.limit]
    # One answer is the likeliest one; several are drawn as the model's chat draws them.
    sampling = Sampling(temperature=0.0) if settings.samples == 1 else load_sampling(subject.run)
    if settings.temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=settings.temperature)
    chat = knows_chat(subject.run, subject.tokenizer)
    answered = answer(
        subject.engine,
        name,
        tasks,
        sampling,
        chat=chat,
        samples=settings.samples,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        progress=tell,
    )
    summary = summarise_answers(answered, settings.ks)
    summary |= {"sampling": vars(sampling), "chat": chat, "max_new_tokens": settings.max_new_tokens}
    summary["examples"] = [
        {
            "prompt": str(one.messages[-1]["content"]),
            "answer": said[0].text,
            "ok": verdicts[0].ok,
            "why": verdicts[0].reason,
        }
        for one, said, verdicts in zip(answered.tasks, answered.answers, answered.verdicts, strict=True)
        if said
    ][:20]
    variant = "calls" if kind == "calls" else "answers"
    return results.of_answers(
        answered, summary, variant + (f"-{settings.samples}samples" if settings.samples > 1 else "")
    )
