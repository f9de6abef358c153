"""The notebook: kept without outputs, and its cells run in their order on a processor."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_helpers import ROOT, environment

NOTEBOOK = ROOT / "notebooks" / "cutaway.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    """Cells of a kind."""
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs_and_is_plain_python() -> None:
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        calls = [node.func for node in ast.walk(ast.parse("".join(cell["source"]))) if isinstance(node, ast.Call)]
        assert not {"eval", "exec"} & {ast.unparse(call) for call in calls}


@pytest.mark.slow
def test_its_cells_run(tmp_path: Path) -> None:
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells("code")), encoding="utf-8")
    env = environment() | {"CUTAWAY_NOTEBOOK_STEPS": "3"}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    losses = [float(found) for found in re.findall(r"^step \d: h = .*, loss = ([\d.]+)$", done.stdout, re.MULTILINE)]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4) and losses == sorted(losses, reverse=True) and len(losses) == 4
    assert re.search(r"^weights +\(1, 4, (\d+), \1\)$", done.stdout, re.MULTILINE)
    assert all(f"**{skill}.answers**" in done.stdout for skill in ("fact", "arithmetic", "comparison"))
    assert (tmp_path / "runs" / "notebook" / "sft" / "evals").is_dir()
