"""A hub on loopback: as much of the Hugging Face hub's HTTP interface, and of ModelScope's, as the tests need.

Large files (over LFS_BYTES) are answered with a redirect to a second address and a SHA-256, small ones with git's
SHA-1, as the real hub does. Trouble is put in by hand: see the fields of `FakeHub`.
"""

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_BYTES = 1000
COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class FakeHub:
    """Repositories by kind and name, and what goes wrong."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """`datasets/owner/name` or `models/owner/name` to path to content."""
    private: dict[str, bool] = field(default_factory=dict)
    """Repositories that were created here."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, by SHA-256."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers of everything asked."""
    cut_after: list[int] = field(default_factory=list)
    """The next answers with content break off after so many bytes, one entry each."""
    answers: list[int] = field(default_factory=list)
    """Status codes of the next answers, instead of the right ones."""
    corrupt: bool = False
    """Content is not what its checksum says."""
    ignores_range: bool = False
    token: str = "hf_secret"

    def ranges(self) -> list[str]:
        """Range headers in the order they came."""
        return [headers["range"] for _, _, headers in self.requests if "range" in headers]

    def counts(self) -> "Counter[str]":
        """Requests by method."""
        return Counter(method for method, _, _ in self.requests)


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub that listens until the block ends."""
    hub = FakeHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if self.hub.answers and (status := self.hub.answers.pop(0)) != 200:
            self._json({"error": "as the test wants it"}, status)
            return
        parts = path.strip("/").split("/")
        if parts[0] == "storage":
            self._content(self.hub.objects[parts[1]] if parts[1] in self.hub.objects else self._stored(parts[1]), "")
        elif parts[0] == "upload":
            self.hub.objects[parts[1]] = self.body
            self._json({}, 200)
        elif parts[:3] == ["api", "repos", "create"]:
            self._create()
        elif parts[:2] == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._lfs_batch()
        elif parts[:2] == ["api", "v1"]:
            self._modelscope_tree("/".join(parts[2:5]))
        elif parts[0] == "api":
            self._api(parts[1:])
        elif "resolve" in parts:
            self._resolve(parts)
        else:
            self._json({"error": "no such path"}, 404)

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for key, text in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def _stored(self, digest: str) -> bytes:
        contents = (content for repo in self.hub.files.values() for content in repo.values())
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == digest)

    def _resolve(self, parts: list[str]) -> None:
        place = parts.index("resolve")
        repo = "/".join(parts[:place]) if parts[0] == "datasets" else "models/" + "/".join(parts[:place])
        name = "/".join(parts[place + 2 :])
        if repo not in self.hub.files:
            self._missing("RepoNotFound")
        elif name not in self.hub.files[repo]:
            self._missing("EntryNotFound")
        elif parts[place + 1] == "master" or len(content := self.hub.files[repo][name]) <= LFS_BYTES:
            self._content(self.hub.files[repo][name], git_sha1(self.hub.files[repo][name]))
        else:
            digest = hashlib.sha256(content).hexdigest()
            self.send_response(302)
            headers = {
                "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{digest}",
                "Content-Length": "0",
            }
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": COMMIT}
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()

    def _content(self, content: bytes, etag: str) -> None:
        start, status = 0, 200
        if (wanted := self.headers.get("Range")) and not self.hub.ignores_range:
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
        if self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        body = content[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut_after and (cut := self.hub.cut_after.pop(0)) < len(body):
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def _modelscope_tree(self, repo: str) -> None:
        files = self.hub.files.get(repo)
        if files is None:
            self._json({"Code": 10010205001, "Data": None}, 404)
            return
        entries = [
            {"Path": name, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        ]
        self._json({"Code": 200, "Data": {"Files": [{"Path": "folder", "Type": "tree"}, *entries]}})

    def _authorised(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._json({"error": "Invalid credentials"}, 401)
        return False

    def _create(self) -> None:
        if not self._authorised():
            return
        wanted = json.loads(self.body)
        kind = wanted.get("type") or "model"
        name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        repo = f"{kind}s/{name}"
        if repo in self.hub.files:
            self._json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
            return
        self.hub.files[repo] = {}
        self.hub.private[repo] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _api(self, parts: list[str]) -> None:
        repo, rest = "/".join(parts[:3]), parts[3:]
        if parts[0] == "whoami-v2":
            if self._authorised():
                self._json({"name": "someone", "type": "user", "orgs": []})
        elif repo not in self.hub.files:
            self._missing("RepoNotFound")
        elif not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name in self.hub.files[repo]]
            self._json({"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": siblings, "private": True})
        elif rest[0] == "tree":
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
                    for name, content in self.hub.files[repo].items()
                ]
            )
        elif rest[0] == "preupload":
            wanted = json.loads(self.body)["files"]
            files = [
                {
                    "path": file["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if file["size"] > LFS_BYTES else "regular",
                }
                for file in wanted
            ]
            self._json({"files": files})
        elif rest[0] == "commit":
            self._commit(repo)
        else:
            self._json({"error": "not here"}, 404)

    def _lfs_batch(self) -> None:
        if not self._authorised():
            return
        objects = [
            item | {"actions": {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}", "header": {}}}}
            for item in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str) -> None:
        if not self._authorised():
            return
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[repo][value["path"]] = self.hub.objects[value["oid"]]
        url = f"{self.hub.url}/{repo.removeprefix('models/')}/commit/{COMMIT}"
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
