"""What every test shares: shapes in signatures are checked while the tests run; nothing reaches the user's caches."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Tiny tensors gain nothing from a second thread, and two test processes with two threads each hinder one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline would measure what else the machine is doing.
settings.register_profile("cutaway", deadline=None)
settings.load_profile("cutaway")

# CUTAWAY_TYPECHECK=off runs the tests without the hook, to compare times or to see a plain traceback.
if os.environ.get("CUTAWAY_TYPECHECK", "on") != "off":
    from jaxtyping import install_import_hook

    install_import_hook("cutaway", "type_check.check")


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For child processes too: this source tree, no network, and token caches that do not land among the user's."""
    os.environ["CUTAWAY_CACHE"] = str(tmp_path_factory.mktemp("cutaway-cache"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session")
def python457() -> str:
    """The interpreter of the environment with Transformers 4.57; the test is skipped where there is none."""
    candidate = Path(os.environ.get("CUTAWAY_PYTHON457", ROOT / ".venv457" / "bin" / "python"))
    if not candidate.exists():
        pytest.skip(f"no second environment at {candidate}: `make test-slow` makes it")
    return str(candidate)


@pytest.fixture(scope="session")
def cutaway_command() -> list[str]:
    """The command line as a user runs it, in a process of its own."""
    return [sys.executable, "-m", "cutaway"]
