"""The real llama.cpp (npm's node-llama-cpp, prebuilt), which `make .llama_cpp/stamp` puts into a folder."""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Ask:
    """One model and what to ask of it. `logits` and `nats` are per position of each prompt, `greedy` a length."""

    model: str
    texts: list[str] = field(default_factory=list)
    special: bool = False
    ends: list[int] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    logits: bool = False
    nats: bool = False
    greedy: int = 0
    lora: str | None = None
    cache: str = "F32"


def folder() -> Path:
    return Path(os.environ.get("CUTAWAY_LLAMA_CPP", ROOT / ".llama_cpp"))


def available() -> bool:
    return shutil.which("node") is not None and (folder() / "node_modules" / "node-llama-cpp").is_dir()


needs_llama_cpp = pytest.mark.skipif(not available(), reason="no llama.cpp: `make .llama_cpp/stamp` gets it (npm)")


def ask(*requests: Ask) -> list[dict[str, Any]]:
    """The answers of one process."""
    with tempfile.TemporaryDirectory() as scratch:
        asked = Path(scratch) / "requests.json"
        asked.write_text(json.dumps([asdict(request) for request in requests]), encoding="utf-8")
        command = ["node", str(Path(__file__).with_suffix(".mjs")), str(folder()), str(asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers
