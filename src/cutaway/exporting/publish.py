"""`cutaway push`: a run as a repository of the hub. What a reader of the model needs goes up, and nothing else.

Checkpoints in `state/`, TensorBoard events and trackers' files stay here. The recipe goes up with the names of the
files it read, not with the folders they are in on this machine.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from cutaway.data.hub import endpoint, trouble
from cutaway.errors import UserError
from cutaway.recipe.files import load_recipe, load_run, read_toml, save_recipe
from cutaway.recipe.recipe import RunSettings
from cutaway.training.card import MARK, card, write_card

Answer = TypeVar("Answer")
PUBLISHED = (
    *("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json"),
    *("adapter_model.safetensors", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("metrics.jsonl", "samples.jsonl", "curves.png"),
)


def push(run: Path, repository: str, *, public: bool = False, licence: str = "unknown") -> str:
    """Upload a run to `owner/name`, made private unless it exists or `public` is asked for; gives back its address.

    Raises UserError with one line where the run is not complete, there is no token, or the hub says no.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--repo is '{repository}', must be owner/name")
    files = published_files(run)
    if not re.fullmatch(r"[a-z0-9.-]+", licence):
        raise UserError(f"--licence is '{licence}', must be an identifier of the hub's list, such as apache-2.0")
    token = get_token()
    if token is None:
        raise UserError("no token for the hub: set HF_TOKEN, or log in with `hf auth login`")
    api = HfApi(endpoint=endpoint(), token=token)
    with tempfile.TemporaryDirectory() as folder:
        operations = [CommitOperationAdd(path.name, str(path)) for path in files]
        operations += [
            CommitOperationAdd(path.name, str(path)) for path in _rewritten(run, Path(folder), licence, repository)
        ]
        _asked(repository, lambda: api.create_repo(repository, private=not public, exist_ok=True))
        commit = _asked(
            repository,
            lambda: api.create_commit(repository, operations, commit_message=f"{run.resolve().name}, by cutaway push"),
        )
    return str(getattr(commit, "repo_url", None) or f"{endpoint()}/{repository}")


def published_files(run: Path) -> list[Path]:
    """The files of a run that go up as they are. Raises UserError where it holds no model."""
    if not run.is_dir():
        raise UserError(f"no run directory '{run}'")
    files = sorted({path for pattern in PUBLISHED for path in run.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{run}: holds no model to push")
    return files


def _rewritten(run: Path, folder: Path, licence: str, repository: str) -> list[Path]:
    """Recipe and card as they go up, and an adapter's configuration is left as it is."""
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        return [run / "README.md"] if (run / "README.md").is_file() else []
    own = load_run(str(recipe))
    names = RunSettings(
        data=tuple(Path(file).name for file in own.data),
        out=repository.split("/")[1],
        init=None if own.init is None else Path(own.init).name,
        eval_data=tuple(Path(file).name for file in own.eval_data),
    )
    save_recipe(load_recipe(str(recipe)), folder / "recipe.toml", names, read_toml(str(recipe)).get("made", {}))
    write_card(run)
    text = (run / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(card(run, licence) if MARK in text else text, encoding="utf-8")
    return [folder / "recipe.toml", folder / "README.md"]


def _asked(repository: str, ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except Exception as error:
        reason = trouble(error)
        if reason is None:
            raise
        raise UserError(f"{repository}: {reason}") from None
