"""`data get`: files of published data sets, resumed where a download broke off, and checked by the hub's checksums.

huggingface_hub does the talking. Its own download into a folder begins again after a process died, which is dear at
14 GB, so the partial file is kept here (`.NAME.CHECKSUM.incomplete`) and handed back to it with what it has already.
"""

import fnmatch
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session

from cutaway.errors import UserError

log = logging.getLogger("cutaway")
MINIMIND, MINIMIND_ON_MODELSCOPE = "jingyaogong/minimind_dataset", "gongjy/minimind_dataset"
MINIMIND_FILES = {
    "pretrain_t2t": "8.3 GB, plain text",
    "pretrain_t2t_mini": "1.2 GB, plain text",
    "sft_t2t": "14 GB, conversations, some with tools and thinking",
    "sft_t2t_mini": "1.7 GB, conversations",
    "dpo": "54 MB, preference pairs",
    "rlaif": "24 MB, prompts",
    "agent_rl": "82 MB, tool use with answers to check",
    "agent_rl_math": "18 MB, sums with answers to check",
    "lora_identity": "23 KB, who the model is",
    "lora_medical": "34 MB, medical questions",
    "lora_exam": "25 MB, the form of examination answers",
}
"""MiniMind's published sets; sizes as of September 2026. Each is NAME.jsonl in both repositories."""
MINIMIND_LICENCE = "apache-2.0 and cc-by-nc-2.0, as their card says: the second does not allow commercial use"
MODELSCOPE = "https://www.modelscope.cn"
WAITS_S = (1.0, 4.0, 15.0)
"""Waits before the hub is asked again after an answer of 500 or above, or no answer."""
_NETWORK_ERROR = HfHubHTTPError.__bases__[0]
"""The base of all errors of the library's HTTP client, whichever that is in this version."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a hub: where it is, and what it must be once it is here."""

    name: str
    url: str
    headers: dict[str, str]
    size: int | None
    checksum: str
    """SHA-256 (64 hexadecimal digits), git's SHA-1 (40), or nothing that can be checked."""


def minimind_bytes(name: str) -> float:
    """The size of one of `MINIMIND_FILES`."""
    number, unit = MINIMIND_FILES[name].split(",")[0].split()
    return float(number) * {"GB": 1e9, "MB": 1e6, "KB": 1e3}[unit]


def get(name: str, out: Path, source: str = "hf") -> list[Path]:
    """Fetch a data set by name, or `owner/name` with an optional `:file` (which may be a pattern), into a folder.

    Gives back the files. Raises UserError with one line for whatever goes wrong.
    """
    if name in MINIMIND_FILES:
        repository = MINIMIND if source == "hf" else MINIMIND_ON_MODELSCOPE
        return [_fetch(_find(repository, f"{name}.jsonl", source), out)]
    repository, _, file = name.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        known = ", ".join(MINIMIND_FILES)
        raise UserError(f"no data set '{name}': name a repository as owner/name or owner/name:file, or one of {known}")
    if file and "*" not in file:
        return [_fetch(_find(repository, file, source), out)]
    names = [path for path in list_files(repository, source) if fnmatch.fnmatch(path, file or "*.*")]
    names = [path for path in names if not path.startswith(".") and (file or path != "README.md")]
    if not names:
        raise UserError(f"{repository}: holds no file{f' like {file}' if file else ''}")
    return [_fetch(_find(repository, path, source), out) for path in names]


def endpoint() -> str:
    """The hub in use: $HF_ENDPOINT (a mirror), else the library's default."""
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def list_files(repository: str, source: str = "hf", revision: str = "main") -> list[str]:
    """Paths of all files of a data set."""
    if source == "modelscope":
        return [entry["Path"] for entry in _modelscope_tree(repository)]
    api = HfApi(endpoint=endpoint())
    names: list[str] = asked(
        repository, lambda: api.list_repo_files(repository, repo_type="dataset", revision=revision)
    )
    return names


def _find(repository: str, name: str, source: str, revision: str = "main") -> RemoteFile:
    """Size, checksum and place of a file."""
    if source == "modelscope":
        entry = next((entry for entry in _modelscope_tree(repository) if entry["Path"] == name), None)
        if entry is None:
            raise UserError(f"{repository}: holds no file {name}")
        url = f"{modelscope_endpoint()}/datasets/{repository}/resolve/master/{quote(name)}"
        return RemoteFile(name, url, {}, entry.get("Size") or None, str(entry.get("Sha256") or ""))
    url = hf_hub_url(repository, name, repo_type="dataset", revision=revision, endpoint=endpoint())
    metadata = asked(f"{repository}: {name}", lambda: get_hf_file_metadata(url, endpoint=endpoint()))
    # A token is for the hub itself, not for the store to which it redirects.
    headers = build_hf_headers(token=None if urlsplit(metadata.location).netloc == urlsplit(url).netloc else False)
    return RemoteFile(name, metadata.location, headers, metadata.size, metadata.etag or "")


def modelscope_endpoint() -> str:
    """ModelScope, or what $MODELSCOPE_ENDPOINT names instead."""
    return os.environ.get("MODELSCOPE_ENDPOINT", MODELSCOPE).rstrip("/")


def _modelscope_tree(repository: str) -> list[dict[str, Any]]:
    url = f"{modelscope_endpoint()}/api/v1/datasets/{repository}/repo/tree"
    query = {"Revision": "master", "Recursive": "True", "PageSize": "500"}

    def ask() -> Any:
        response = get_session().get(url, params=query, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        response.raise_for_status()
        return response.json()

    try:
        files: list[dict[str, Any]] = asked(repository, ask)["Data"]["Files"]
        return [entry for entry in files if entry.get("Type") != "tree"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{repository}: ModelScope gave an answer that lists no files") from None


def _fetch(remote: RemoteFile, out: Path) -> Path:
    """Download a file, going on with what is there, and check it. A file that is complete is not fetched again."""
    target = out / remote.name
    if out.resolve() not in target.resolve().parents:
        raise UserError(f"{remote.name}: the hub names a file outside the folder")
    if target.is_file():
        if _wrong(target, remote) == "":
            log.info("%s: complete already", target)
            return target
        raise UserError(f"{target}: is there but not the file on the hub ({_wrong(target, remote)}); move it away")
    partial = target.with_name(f".{target.name}.{re.sub(r'[^0-9a-zA-Z]', '', remote.checksum)[:16]}.incomplete")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        asked(remote.name, lambda: _download(remote, partial))
        if wrong := _wrong(partial, remote):
            partial.unlink()
            raise UserError(f"{remote.name}: damaged on the way ({wrong}); it was removed, try again")
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        if partial.is_file() and not partial.stat().st_size:
            partial.unlink()
    log.info("%s: %.1f MB, %s", target, target.stat().st_size / 1e6, _checked(remote))
    return target


def _download(remote: RemoteFile, partial: Path) -> None:
    with open(partial, "ab") as file:
        there = file.tell()
        if remote.size is not None and there > remote.size:
            file.truncate(0)
            there = 0
        if there and there != remote.size:
            log.info("%s: going on after %.1f MB", remote.name, there / 1e6)
        http_get(
            remote.url,
            file,
            resume_size=there,
            headers=remote.headers,
            expected_size=remote.size,
            displayed_filename=remote.name,
        )


def _wrong(path: Path, remote: RemoteFile) -> str:
    """What is wrong with a file, or nothing."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"{size} bytes instead of {remote.size}"
    if len(remote.checksum) == 64 and _digest(path, hashlib.sha256()) != remote.checksum:
        return "the SHA-256 differs"
    if len(remote.checksum) == 40 and _digest(path, hashlib.sha1(b"blob %d\0" % size)) != remote.checksum:
        return "the SHA-1 differs"
    return ""


def _checked(remote: RemoteFile) -> str:
    kinds = {64: "SHA-256 checked", 40: "SHA-1 checked"}
    return kinds.get(len(remote.checksum), "size checked, the hub gives no checksum")


def _digest(path: Path, digest: Any) -> str:
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return str(digest.hexdigest())


def asked(what: str, ask: Callable[[], Any]) -> Any:
    """The answer of a hub, asked again after a passing trouble; UserError with one line for everything else."""
    for wait in (*WAITS_S, None):
        try:
            return ask()
        except Exception as error:
            reason = trouble(error)
            if reason is None:
                raise
            if wait is None or not _may_pass(error):
                raise UserError(f"{what}: {reason}") from None
            log.info("%s: %s; asking again in %g s", what, reason, wait)
            time.sleep(wait)
    raise AssertionError


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    offline = isinstance(error, OfflineModeIsEnabled)
    return not offline and isinstance(error, (_NETWORK_ERROR, OSError)) and (status is None or status >= 500)


def trouble(error: Exception) -> str | None:
    """What an error of the hub or the network means, in a few words; None where it is neither."""
    hub = endpoint()
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is fetched"
    if isinstance(error, GatedRepoError):
        return f"access must be asked for on its page at {hub}, then log in with a token (HF_TOKEN)"
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        return f"no such repository at {hub}, or a private one (HF_TOKEN holds no token that may read it)"
    if isinstance(error, RevisionNotFoundError):
        return f"no such revision at {hub}"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"no such file at {hub}"
    if status is not None:
        meaning = {401: "it wants a valid token (HF_TOKEN)", 403: "the token may not do this"}
        meaning |= {404: "nothing is there", 429: "too many requests"}
        return f"the hub answered {status}, {meaning.get(status, 'try again later' if status >= 500 else 'no success')}"
    if isinstance(error, OSError) and "Consistency check" in str(error):
        return "the connection broke off before the end; the same command goes on from there"
    if isinstance(error, (_NETWORK_ERROR, ConnectionError, LocalEntryNotFoundError)):
        kind = type(error).__name__
        return f"the hub at {hub} cannot be reached ({kind}); the same command goes on, HF_ENDPOINT names a mirror"
    return None
