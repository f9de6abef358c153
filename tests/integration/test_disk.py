"""A full disk, for real: one clear line, exit code 2, and the last checkpoint goes on when there is room again."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import Town, cutaway, final_bytes, finish

from cutaway.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
STEPS = 12


@pytest.fixture(scope="module")
def whole(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(town.pretrain(run, STEPS, "--save-every", "4"), run.with_suffix(".log"))
    return run


@pytest.fixture
def begun(town: Town, tmp_path: Path) -> Path:
    """The same run as it stood after its checkpoint of step 4."""
    run = tmp_path / "run"
    finish(town.pretrain(run, STEPS, "--save-every", "4", "--keep-checkpoints", "9"), run.with_suffix(".log"))
    for step in Checkpoints(run, 9).steps()[1:]:
        shutil.rmtree(run / "state" / f"step-{step:08d}")
    return run


def check_refused(done: subprocess.CompletedProcess[str], run: Path) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("cutaway: error: ")]
    assert len(errors) == 1
    assert done.stderr.splitlines()[-1] == errors[0]
    assert "checkpoint of step 8 could not be written" in errors[0]
    assert "the checkpoint of step 4 is intact" in errors[0]
    assert Checkpoints(run, 2).steps() == [4]
    assert not list((run / "state").glob(".*"))


def check_goes_on(run: Path, whole: Path) -> None:
    done = cutaway("pretrain", "--resume", "--out", str(run))
    assert done.returncode == 0, done.stderr
    assert final_bytes(run, STEPS) == final_bytes(whole, STEPS)


def test_a_file_that_may_not_grow(begun: Path, whole: Path) -> None:
    limit = (begun / "model.safetensors").stat().st_size // 2

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = cutaway("pretrain", "--resume", "--out", str(begun), preexec_fn=limited)
    check_refused(done, begun)
    assert "File too large" in done.stderr
    check_goes_on(begun, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "cutaway-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_without_room(begun: Path, whole: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    shutil.copytree(begun, run)
    for path in run.rglob("*"):
        # The published weights are a link to those of the checkpoint, as they are in a run.
        if path.name == "model.safetensors" and path.parent == run:
            path.unlink()
            os.link(run / "state" / "step-00000004" / "model.safetensors", path)
    ballast = small_disk / "ballast"
    room = shutil.disk_usage(small_disk).free - 250_000
    ballast.write_bytes(bytes(room))
    done = cutaway("pretrain", "--resume", "--out", str(run))
    check_refused(done, run)
    assert "No space left on device" in done.stderr
    ballast.unlink()
    check_goes_on(run, whole)


def test_no_room_for_anything_is_one_line_too(begun: Path, whole: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    shutil.copytree(begun, run)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    done = cutaway("pretrain", "--resume", "--out", str(run))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert Checkpoints(run, 2).steps() == [4]
    ballast.unlink()
    check_goes_on(run, whole)
