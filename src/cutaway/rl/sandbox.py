"""Code that a model wrote, run where it can do little harm: the reward `code`.

A process of its own without network, without the right to write, make or remove a file, with limits of time and memory;
what it starts ends with it (Linux with user namespaces and Landlock). Where the system lacks these, nothing is run and
the user is told. It can still read what this user can read, and has nowhere to send it.

It is a guard against mistakes and shortcuts, not a judge of code that is written to deceive: answer and tests share one
interpreter, so an answer may hand the tests an object that is equal to everything, or look for the nonce in the frames
below it.
"""

import math
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cutaway.errors import UserError
from cutaway.rl.environment import Episode
from cutaway.rl.sandbox_child import REFUSED

CHILD = Path(__file__).with_name("sandbox_child.py")
SECONDS, MEGABYTES, AT_ONCE = 5, 256, 4
MOST_SAID = 4096
"""Bytes that are read of why a program did not end well."""
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def run_code(*programs: str, seconds: int = SECONDS, megabytes: int = MEGABYTES) -> tuple[bool, str]:
    """Whether Python programs, one after the other in one namespace, ran to their end, and why not. UserError where
    they cannot be run safely.

    They lie on no disk, and their end is a nonce that none of their names holds: a program that exits has not reached
    it, whatever its exit code. What they print goes nowhere. The pipe for the nonce is read only afterwards, so no more
    than it holds is ever kept.
    """
    nonce = secrets.token_hex(16)
    reading, writing = os.pipe()
    with open(reading, "rb") as report:
        with open(writing, "wb") as end:
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "-S", str(CHILD), str(seconds), str(megabytes)],
                    cwd="/",
                    env={},
                    input="\0".join((nonce, *programs)).encode("utf-8", "replace"),
                    stdout=end,
                    stderr=subprocess.DEVNULL,
                    timeout=2 * seconds + 1,  # the CPU's limit is `seconds`; one that sleeps is ended here
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False, f"took longer than {2 * seconds + 1} seconds"
        said = report.read(MOST_SAID).decode("utf-8", "replace").strip()
    if done.returncode == REFUSED:
        raise UserError(f"code cannot be run safely on this system: {said or 'no reason given'}")
    if said == nonce:
        return True, "ended well"
    if done.returncode < 0:
        return False, f"ended by {signal.Signals(-done.returncode).name}"
    return False, said[:200] or f"exit code {done.returncode}"


def last_block(text: str) -> str | None:
    """The last block of Python in an answer; None where it has none."""
    found = _BLOCK.findall(text)
    return str(found[-1]) if found else None


def passes_tests(episodes: Sequence[Episode]) -> list[float]:
    """1 where the answer's last block of Python, followed by the record's `tests`, runs to its end; 0 where it does
    not, NaN for a record without tests. One that exits before its tests has not passed them."""
    check()

    def score(episode: Episode) -> float:
        tests, code = episode.record.get("tests"), last_block(episode.text)
        if not isinstance(tests, str):
            return math.nan
        return float(code is not None and run_code(code, tests)[0])

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sandbox") as pool:
        return list(pool.map(score, episodes))


def check() -> None:
    """UserError where this system has no means to run code safely."""
    if not sys.platform.startswith("linux"):
        raise UserError("the reward code needs Linux: code is run without network and the right to write")
    run_code("")
