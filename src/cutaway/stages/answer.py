"""Black-box distillation: a teacher behind an OpenAI-compatible endpoint writes the answers of an SFT file.

What is asked is a file of conversations; everything up to the last question of each is the prompt. The result is a file
that `cutaway sft` trains on. Answers are on disk as soon as they are there, and a file that exists is gone on with:
what it answers is not asked again.
"""

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.data.formats import read_records
from cutaway.data.hashing import content_hash
from cutaway.errors import UserError
from cutaway.generation.http import ServerError, post_json
from cutaway.tokenization.messages import Message

log = logging.getLogger("cutaway")
NOT_THIS_SERVER = (0, 401, 403, 404, 405)
"""No answer, or HTTP statuses that say that no question will be answered here."""
NOT_THIS_QUESTION = (400, 413, 422)
"""HTTP statuses that say that asking the same again would not help."""
FAILURES_IN_A_ROW = 8
"""After so many questions without an answer the teacher is taken to be gone."""
WRONG, EMPTY, CUT = -1, -2, -3
"""Codes of answers that came and are of no use."""


@dataclass(frozen=True)
class Teacher:
    """Where answers come from, and how they are asked for."""

    endpoint: str
    """Address of the server, up to and with /v1, such as http://127.0.0.1:8000/v1."""
    model: str
    """Name of the model there."""
    system: str = ""
    """System message put before every question that has none; it is not written to the file."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token."""
    max_tokens: int = 512
    """Longest answer."""
    seconds: float = 120.0
    """Longest wait for one answer."""
    tries: int = 3
    """How often a question is asked before it is skipped."""
    at_once: int = 8
    """Questions that are under way at a time."""
    limit: int | None = None
    """Only so many questions."""


@dataclass
class Report:
    """What became of the questions."""

    written: int = 0
    there: int = 0
    """Answered by an earlier run."""
    skipped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.written} answers written"]
        if self.there:
            parts.append(f"{self.there} were there")
        if count := sum(self.skipped.values()):
            reasons = ", ".join(f"{number} {reason}" for reason, number in self.skipped.most_common())
            parts.append(f"{count} skipped: {reasons}")
        return "; ".join(parts)


def answer_files(
    files: Sequence[str],
    out: Path,
    teacher: Teacher,
    *,
    api_key: str | None = None,
    skip_bad: int = 0,
    progress: Callable[[float, int], None] | None = None,
) -> Report:
    """Ask the teacher every question of the files and append its answers to `out`, in their order.

    A question whose answer does not come, or is none, is skipped and counted; running again asks it again. UserError
    where the server cannot be reached or refuses the first question, or leaves `FAILURES_IN_A_ROW` without an answer;
    what was written stays.
    """
    _check(teacher, out)
    prompts = _prompts(files, skip_bad)[: teacher.limit]
    known, report, failures = _answered(out), Report(), 0
    missing = [prompt for prompt in prompts if _key(prompt) not in known]
    report.there = len(prompts) - len(missing)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(teacher.at_once, thread_name_prefix="teacher") as pool, out.open("ab") as file:
        for number, (prompt, answer) in enumerate(_in_order(pool, missing, teacher, api_key), 1):
            try:
                record = {"conversations": [*prompt, answer.result()], "teacher": teacher.model}
            except ServerError as error:
                failures += 1
                if (number == 1 and error.code in NOT_THIS_SERVER) or failures == FAILURES_IN_A_ROW:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise UserError(f"{error} ({report}; the same command goes on from there)") from None
                report.skipped[_reason(error)] += 1
                log.warning("skipped: %s", error)
                continue
            failures = 0
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            report.written += 1
            if progress is not None:
                progress(number / len(missing), report.written)
    return report


def ask(prompt: Sequence[Message], teacher: Teacher, api_key: str | None = None) -> Message:
    """The teacher's next turn. Raises ServerError where none comes in `tries` tries, or what comes is none."""
    system = [{"role": "system", "content": teacher.system}] if teacher.system and prompt[0]["role"] != "system" else []
    body: dict[str, Any] = {"model": teacher.model, "messages": [*system, *prompt]}
    body |= {"temperature": teacher.temperature, "max_tokens": teacher.max_tokens}
    url = f"{teacher.endpoint.rstrip('/')}/chat/completions"
    tried = 0
    while True:
        try:
            return _turn(post_json(url, body, api_key=api_key, seconds=teacher.seconds), url)
        except ServerError as error:
            tried += 1
            if tried >= teacher.tries or error.code in (*NOT_THIS_SERVER[1:], *NOT_THIS_QUESTION):
                raise
            time.sleep(min(30.0, error.wait_s or 0.25 * 2**tried))


def _turn(answer: Any, url: str) -> Message:
    """The assistant's turn in what the server sent."""
    try:
        choice = answer["choices"][0]
        content, thought = choice["message"].get("content"), choice["message"].get("reasoning_content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ServerError(f"{url}: what came back is no chat completion", WRONG) from None
    if choice.get("finish_reason") == "length":
        raise ServerError(f"{url}: the answer is longer than max_tokens", CUT)
    if not isinstance(content, str) or not content.strip():
        raise ServerError(f"{url}: the answer is empty", EMPTY)
    turn: Message = {"role": "assistant", "content": content.strip()}
    return turn | ({"reasoning_content": thought.strip()} if isinstance(thought, str) and thought.strip() else {})


def _reason(error: ServerError) -> str:
    """A failure in few words, to count by."""
    words = {0: "without an answer", WRONG: "with something else than an answer", EMPTY: "with an empty answer"}
    words[CUT] = "with an answer longer than max_tokens"
    return words.get(error.code, f"with HTTP {error.code}")


def _check(teacher: Teacher, out: Path) -> None:
    if not teacher.endpoint.startswith(("http://", "https://")):
        raise UserError(f"endpoint is {teacher.endpoint!r}, must begin with http:// or https://")
    for name in ("max_tokens", "tries", "at_once"):
        if getattr(teacher, name) < 1:
            raise UserError(f"{name} is {getattr(teacher, name)}, must be at least 1")
    if not teacher.seconds > 0:
        raise UserError(f"seconds is {teacher.seconds}, must be above 0")
    if not teacher.temperature >= 0:
        raise UserError(f"temperature is {teacher.temperature}, must be 0 or more")
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: the file to write must end with .jsonl, to which lines can be added")


def _prompts(files: Sequence[str], skip_bad: int) -> list[list[Message]]:
    """Conversations up to and with their last question, a tool's result included."""
    found = []
    for record in read_records(files, "rl", skip_bad):
        turns = record.value["conversations"]
        last = max(i for i, turn in enumerate(turns) if turn["role"] in ("user", "tool"))
        found.append(turns[: last + 1])
    return found


def _answered(out: Path) -> set[int]:
    """Keys of the questions that the file answers; a torn last line is cut off."""
    if not out.is_file():
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        known = {_key(json.loads(line)["conversations"][:-1]) for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out}: not a file of answers, so it is left alone: choose another --out") from None
    if len(whole) < len(content):
        with out.open("rb+") as file:
            file.truncate(len(whole))
    return known


def _key(prompt: Sequence[Message]) -> int:
    return content_hash(json.dumps(prompt, ensure_ascii=False, sort_keys=True))


def _in_order(
    pool: ThreadPoolExecutor, prompts: Sequence[list[Message]], teacher: Teacher, api_key: str | None
) -> Iterator[tuple[list[Message], Future[Message]]]:
    """Questions with their answers to come; a few more are asked than are waited for."""
    waiting: deque[tuple[list[Message], Future[Message]]] = deque()
    for prompt in prompts:
        waiting.append((prompt, pool.submit(ask, prompt, teacher, api_key)))
        if len(waiting) > 2 * teacher.at_once:
            yield waiting.popleft()
    yield from waiting
