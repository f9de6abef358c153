"""Tasks that are answered in words or calls: the engine writes, a verifier judges, and how answers read is counted too.

Prompts come from records of the RL format (`gt` or `verifier`), or, for tool calls, from conversations that hold calls:
every assistant turn of such a conversation is asked for, after the turns that really came before it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.data.formats import BadCounter, read_records
from cutaway.errors import UserError
from cutaway.evals.behaviour import MAX_REPEATS, max_repeats
from cutaway.evals.intervals import Share, bootstrap_mean
from cutaway.generation.conversation import answer_prompt
from cutaway.generation.engine import Completion, Engine, Request
from cutaway.generation.generate import document_prompt
from cutaway.generation.sampling import Sampling
from cutaway.tokenization.messages import Message, normalise
from cutaway.verifiers.record import verifier_of
from cutaway.verifiers.table import VERIFIERS, Verifier, check_verifier, run_verifier
from cutaway.verifiers.verdict import Verdict

SPREAD = 100_003
"""Seeds of the samples of one prompt are so far apart, so that no two requests of a task draw alike."""


@dataclass(frozen=True)
class Task:
    """One thing to answer, and the verifier that judges it."""

    messages: list[Message]
    verifier: dict[str, Any]
    conversation: int
    """Tasks of one conversation share it."""
    subject: str = ""
    file: str = ""
    line: int = 0

    @property
    def key(self) -> str:
        """What makes two tasks the same, for pairing runs."""
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)


def read_tasks(
    path: str | Path,
    skip_bad: int = 0,
    names: Mapping[str, str] | None = None,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
) -> list[Task]:
    """Tasks of a file of RL records. `names` fills placeholders such as `{{name}}` in texts and arguments.

    Raises UserError, `file:line: reason`, for a bad record, a verifier that cannot be used or a placeholder without a
    value, beyond `skip_bad`.
    """
    bad = BadCounter(skip_bad)
    tasks: list[Task] = []
    for record in read_records([path], "rl", bad):
        value = _fill(record.value, names or {})
        try:
            turns = normalise(value["conversations"])
            verifier = value.get("verifier") or verifier_of(value.get("gt"))
        except UserError as error:
            bad.add(record.file, record.line, str(error))
            continue
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if reason := _placeholder(value) or check_verifier(verifier, verifiers):
            bad.add(record.file, record.line, reason)
            continue
        grade = value.get("grade")  # 0 is one
        subject = str(value.get("subject") or ("" if grade is None else grade))
        tasks.append(Task(turns, verifier, len(tasks), subject, record.file, record.line))
    if not tasks:
        raise UserError(f"{path}: no usable task")
    return tasks


def read_call_tasks(path: str | Path, skip_bad: int = 0) -> list[Task]:
    """A task for every assistant turn of conversations whose system turn offers tools; turns without calls count too,
    since calling nothing is then right. Tool results are those of the file."""
    tasks: list[Task] = []
    for number, record in enumerate(read_records([path], "sft", skip_bad)):
        turns = normalise(record.value["conversations"])
        if not any(turn.get("tools") for turn in turns):
            continue
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant" and place and turns[place - 1]["role"] != "assistant":
                verifier = {"name": "tool_calls", "args": {"calls": turn.get("tool_calls", [])}}
                subject = "calls" if turn.get("tool_calls") else "no call"
                tasks.append(Task(turns[:place], verifier, number, subject, record.file, record.line))
    if not tasks:
        raise UserError(f"{path}: no conversation there offers tools")
    return tasks


def _fill(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("{{" + name + "}}", text)
        return value
    if isinstance(value, list):
        return [_fill(item, names) for item in value]
    return {key: _fill(item, names) for key, item in value.items()} if isinstance(value, dict) else value


def _placeholder(value: Any) -> str | None:
    for name in ("name", "author"):
        if "{{" + name + "}}" in repr(value):
            return f"{{{{{name}}}}} stands in it: say what it is with --{name}"
    return None


@dataclass(frozen=True)
class Answered:
    """What a model wrote: `answers[i]` and `verdicts[i]` hold every sample of task i."""

    name: str
    tasks: list[Task]
    answers: list[list[Completion]]
    verdicts: list[list[Verdict]]
    too_long: int
    """Tasks whose prompt leaves no room for an answer; they count as failed."""


def answer(
    engine: Engine,
    name: str,
    tasks: Sequence[Task],
    sampling: Sampling,
    *,
    chat: bool = True,
    samples: int = 1,
    max_new_tokens: int = 256,
    seed: int = 0,
    verifiers: Mapping[str, Verifier] = VERIFIERS,
    progress: Callable[[int, int], None] | None = None,
) -> Answered:
    """Let the engine write `samples` answers to every task, and judge them.

    `chat=False` is for a model that only continues text: it is given the last turn's text alone. The answer judged is
    what the user sees, so without thinking.
    """
    found: dict[int, tuple[int, int]] = {}
    answers: list[list[Completion]] = [[] for _ in tasks]
    verdicts: list[list[Verdict]] = [[] for _ in tasks]
    too_long = 0
    for number, task in enumerate(tasks):
        prompt = _prompt(engine, task, chat)
        if len(prompt) >= engine.max_length:
            too_long += 1
            verdicts[number] = [Verdict(False, "the prompt does not fit the model", 0.0)] * samples
            continue
        for sample in range(samples):
            own = seed + number + SPREAD * sample
            request = Request(prompt, max_new_tokens, own, **vars(sampling))
            found[engine.submit(request)] = (number, sample)
    done: dict[tuple[int, int], Completion] = {}
    while len(done) < len(found):
        engine.step()
        for completion in engine.collect():
            done[found[completion.id]] = completion
        if progress is not None:
            progress(len(done), len(found))
    for (number, _), completion in sorted(done.items()):
        answers[number].append(completion)
        verdicts[number].append(run_verifier(tasks[number].verifier, visible(completion.text), verifiers))
    return Answered(name, list(tasks), answers, verdicts, too_long)


def _prompt(engine: Engine, task: Task, chat: bool) -> list[int]:
    if chat:
        return answer_prompt(task.messages, engine.tokenizer)
    return document_prompt(str(task.messages[-1]["content"]), engine.tokenizer)


def visible(text: str) -> str:
    """What a user sees of an answer: what follows the thinking, nothing if that never ended."""
    before, tag, after = text.rpartition("</think>")
    return after.strip() if tag else "" if "<think>" in text else before + after


def pass_at_k(right: int, samples: int, k: int) -> float:
    r"""Chance that at least one of k answers is right: $1 - \binom{n - c}{k} / \binom{n}{k}$ from c of n samples.

    Unbiased (Chen et al., arXiv 2107.03374, equation 1), unlike $1 - (1 - c/n)^k$. Needs k of at most n.
    """
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} needs at least {k} answers to each prompt, there are {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def summarise_answers(answered: Answered, ks: Iterable[int] = (1,)) -> dict[str, Any]:
    """All figures of a generation task as plain values."""
    right = [sum(verdict.ok for verdict in verdicts) for verdicts in answered.verdicts]
    samples = max(map(len, answered.verdicts))
    passes = {}
    for k in ks:
        values = np.array([pass_at_k(count, samples, k) for count in right])
        low, high = bootstrap_mean(values)
        passes[str(k)] = {"value": float(values.mean()), "low": low, "high": high}
    scores = np.array([np.mean([verdict.score for verdict in verdicts]) for verdicts in answered.verdicts])
    score_low, score_high = bootstrap_mean(scores)
    summary: dict[str, Any] = {
        "kind": "answers",
        "tasks": len(answered.tasks),
        "samples": samples,
        "pass": passes,
        "score": {"value": float(scores.mean()), "low": score_low, "high": score_high},
        "raised": sum(verdict.raised for verdicts in answered.verdicts for verdict in verdicts),
        "too_long": answered.too_long,
        "verifiers": _by_label(answered, [str(task.verifier["name"]) for task in answered.tasks]),
        "subjects": _by_label(answered, [task.subject for task in answered.tasks]),
        "reading": reading([one for answers in answered.answers for one in answers]),
    }
    if samples == 1:
        share = Share.of([count > 0 for count in right])
        passes["1"] = {"value": share.share, "low": share.low, "high": share.high}
    if any(task.verifier["name"] == "tool_calls" for task in answered.tasks):
        summary["calls"] = call_figures(answered)
    return summary


def _by_label(answered: Answered, labels: Sequence[str]) -> dict[str, Any]:
    """Share of right answers by label, over the first sample of each task; empty with fewer than two labels."""
    held: dict[str, list[bool]] = defaultdict(list)
    for label, verdicts in zip(labels, answered.verdicts, strict=True):
        held[label].append(verdicts[0].ok)
    return {label: vars(Share.of(held[label])) for label in sorted(held)} if len(held) > 1 else {}


def reading(answers: Sequence[Completion]) -> dict[str, Any]:
    """How answers read: their length in tokens, whether they end by themselves, whether they go round in circles."""
    if not answers:
        return {}
    lengths = [len(one.ids) for one in answers]
    return {
        "mean_tokens": float(np.mean(lengths)),
        "median_tokens": float(np.median(lengths)),
        "longest": max(lengths),
        "ended": vars(Share.of([one.finish_reason == "stop" for one in answers])),
        "without_loops": vars(Share.of([max_repeats(one.text) <= MAX_REPEATS for one in answers])),
        "empty": vars(Share.of([not visible(one.text).strip() for one in answers])),
        "different": len({one.text for one in answers}) / len(answers),
    }


def call_figures(answered: Answered) -> dict[str, Any]:
    """Where calls go wrong: shares over the first sample of each task, and of whole conversations without a mistake.

    `called`: of tasks that want a call, those that make one; `silent`: of those that want none, those that make none.
    `names`, `arguments`, `any_order`: of tasks that want a call, those with the right names in order, with the right
    arguments too, and with both in any order.
    """
    ignore: dict[str, Any] = {"arguments": "ignore"}
    wanted: dict[str, dict[str, Any]] = {"names": ignore, "arguments": {}, "any_order": {"ordered": False}}
    flags: dict[str, list[bool]] = {name: [] for name in ("called", *wanted, "silent")}
    whole: dict[int, bool] = {}
    for task, answers, verdicts in zip(answered.tasks, answered.answers, answered.verdicts, strict=True):
        if task.verifier["name"] != "tool_calls":
            continue
        text = visible(answers[0].text) if answers else ""
        calls = task.verifier["args"]["calls"]
        whole[task.conversation] = whole.get(task.conversation, True) and verdicts[0].ok
        if not calls:
            flags["silent"].append("<tool_call>" not in text)
            continue
        flags["called"].append("<tool_call>" in text)
        for name, changes in wanted.items():
            spec = {"name": "tool_calls", "args": {**task.verifier["args"], **changes}}
            flags[name].append(run_verifier(spec, text).ok)
    shares = {name: vars(Share.of(held)) for name, held in flags.items() if held}
    return shares | {"conversations": vars(Share.of(list(whole.values())))}
