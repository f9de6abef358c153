"""Code that a model wrote, run where it can do little harm: the reward `code`.

A process of its own without network, without the right to write, make or remove a file, with limits of time and memory;
what it starts ends with it (Linux with user namespaces and Landlock). Where the system lacks these, nothing is run and
the user is told. It can still read what this user can read, and has nowhere to send it.
"""

import math
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cutaway.errors import UserError
from cutaway.rl.environment import Episode
from cutaway.rl.sandbox_child import REFUSED

CHILD = Path(__file__).with_name("sandbox_child.py")
SECONDS, MEGABYTES, AT_ONCE = 5, 256, 4
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def run_code(code: str, seconds: int = SECONDS, megabytes: int = MEGABYTES, well: int = 0) -> tuple[bool, str]:
    """Whether a Python program ended well, with the exit code `well`, and why not. UserError where it cannot be run
    safely."""
    with tempfile.TemporaryDirectory(prefix="cutaway-code-") as folder:
        file = Path(folder) / "code.py"
        file.write_text(code, encoding="utf-8")
        command = [sys.executable, "-I", "-S", str(CHILD), str(file), str(seconds), str(megabytes)]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=2 * seconds + 1,  # the CPU's limit is `seconds`; one that sleeps is ended here
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, f"took longer than {2 * seconds + 1} seconds"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode == REFUSED:
        raise UserError(f"code cannot be run safely on this system: {said[-1] if said else 'no reason given'}")
    if done.returncode == well:
        return True, "ended well"
    if done.returncode < 0:
        return False, f"ended by {signal.Signals(-done.returncode).name}"
    return False, said[-1][:200] if said else f"exit code {done.returncode}"


def last_block(text: str) -> str | None:
    """The last block of Python in an answer; None where it has none."""
    found = _BLOCK.findall(text)
    return str(found[-1]) if found else None


def passes_tests(episodes: Sequence[Episode]) -> list[float]:
    """1 where the answer's last block of Python, followed by the record's `tests`, runs to its end; 0 where it does
    not, NaN for a record without tests. The end is an exit code that no answer can know: one that exits before its
    tests has not passed them."""
    check()

    def score(episode: Episode) -> float:
        tests, code = episode.record.get("tests"), last_block(episode.text)
        if not isinstance(tests, str):
            return math.nan
        well = 100 + secrets.randbelow(100)
        return float(code is not None and run_code(f"{code}\n{tests}\nraise SystemExit({well})\n", well=well)[0])

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sandbox") as pool:
        return list(pool.map(score, episodes))


def check() -> None:
    """UserError where this system has no means to run code safely."""
    if not sys.platform.startswith("linux"):
        raise UserError("the reward code needs Linux: code is run without network and the right to write")
    run_code("")
