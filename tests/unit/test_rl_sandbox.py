"""Code that a model wrote: what it may do, what it may not, and what an answer earns by it."""

import math
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from cutaway.errors import UserError
from cutaway.rl import sandbox
from cutaway.rl.environment import Episode
from cutaway.rl.prompts import Prompt
from cutaway.rl.sandbox import last_block, passes_tests, run_code


@pytest.fixture(autouse=True, scope="module")
def _able() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    try:
        sandbox.check()
    except UserError as error:
        pytest.skip(str(error))


def test_plain_code_runs() -> None:
    assert run_code("assert sum(range(5)) == 10") == (True, "ended well")
    assert run_code("assert 1 == 2, 'no'") == (False, "AssertionError: no")
    assert run_code("def f(:") == (False, "SyntaxError: invalid syntax")


def test_it_has_no_network() -> None:
    code = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"
    ok, reason = run_code(code)
    assert not ok and "unreachable" in reason.lower()


@pytest.mark.parametrize(
    "action",
    [
        "open(p + '/new', 'w')",
        "open(p + '/old', 'a')",
        "import os; os.remove(p + '/old')",
        "import os; os.truncate(p + '/old', 0)",
        "import os; os.mkdir(p + '/folder')",
    ],
)
def test_it_changes_no_file(action: str, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    ok, reason = run_code(f"p = {str(tmp_path)!r}\n{action}")
    assert not ok and "PermissionError" in reason
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "kept"


def test_what_it_starts_ends_with_it(tmp_path: Path) -> None:
    """A grandchild that holds the pipe would make the run wait for it."""
    began = time.monotonic()
    ok, _ = run_code(
        "import os, time\ntry:\n    child = os.fork()\nexcept OSError:\n    child = 1\nif not child: time.sleep(60)"
    )
    assert ok
    assert time.monotonic() - began < 30


@pytest.mark.long
def test_time_and_memory_are_limited() -> None:
    assert run_code("while True: pass", seconds=1) == (False, "ended by SIGKILL")
    assert run_code("import time; time.sleep(60)", seconds=1)[1] == "took longer than 3 seconds"
    assert run_code("x = bytearray(10**9)") == (False, "MemoryError")


def test_only_the_end_is_an_end() -> None:
    """64 is what the sandbox says of itself where it cannot be one."""
    assert run_code("import os\nos._exit(64)") == (False, "exit code 1")
    assert run_code("import os\nos._exit(0)") == (False, "exit code 0")
    assert run_code("raise SystemExit", "assert False") == (False, "SystemExit")
    assert run_code("x = 1", "assert x == 1 and __name__ == '__main__'") == (True, "ended well")
    # What is left open at the end of one program takes nothing of the next away.
    assert not run_code("if False: \\", "assert False")[0]


def test_the_end_cannot_be_read_or_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "the" + "nonce")
    places = (
        "open('/proc/self/cmdline').read()",
        "sys.stdin.read()",
        "str(globals())",
        "str(os.environ)",
        "str(os.listdir())",
    )
    for place in places:
        assert run_code(f"import os, sys\nassert 'the' + 'nonce' not in {place}") == (True, "ended well")
    assert run_code("open(__file__)") == (False, "NameError: name '__file__' is not defined")


@pytest.mark.long
def test_what_it_says_fills_neither_memory_nor_disk() -> None:
    """64 MB to each descriptor, the one that the end is told on among them, which blocks once it holds no more."""
    tracemalloc.start()
    line = "import os, sys\nfor _ in range(64): {}"
    assert run_code(line.format("sys.stderr.write('x' * 2**20)"))[0]
    assert run_code(line.format("print('x' * 2**20)"))[0]
    assert not run_code(line.format("[os.write(n, b'x' * 2**20) for n in range(1, 5)]"), seconds=1)[0]
    assert not run_code("raise ValueError('x' * 2**20)")[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_what_an_answer_earns() -> None:
    def episode(text: str, tests: str | None) -> Episode:
        record = {"conversations": [{"role": "user", "content": "write f"}], "tests": tests}
        found = Episode(Prompt("x", record, [1]), 0)
        found.said = [{"role": "assistant", "content": text}]
        return found

    right = "First:\n```python\nf = None\n```\nBetter:\n```python\ndef f(x):\n    return 2 * x\n```\n"
    assert last_block(right) == "def f(x):\n    return 2 * x\n"
    wrong = right.replace("2 * x", "3 * x")
    tests = "assert f(4) == 8"
    found = passes_tests(
        [episode(right, tests), episode(wrong, tests), episode("no code", tests), episode(right, None)]
    )
    assert found[:3] == [1.0, 0.0, 0.0]
    early = [f"```python\n{line}\n```" for line in ("raise SystemExit", "import os\nos._exit(0)")]
    assert passes_tests([episode(text, tests) for text in early]) == [0.0, 0.0]
    assert math.isnan(found[3])
