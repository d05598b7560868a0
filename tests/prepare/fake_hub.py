"""A small hub on this machine: what huggingface_hub and datasets ask the real one for, answered from bytes in memory.

Repositories have commits, branches and tags; files of models and data sets are listed, described and served, large ones
by a redirect with `X-Linked-*` headers, as the hub does. No login, no xet, no pages of listings, no data set viewer.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

LARGE = (".safetensors", ".parquet", ".bin")
"""Endings of what git-lfs keeps: served from another address, with the SHA-256 as its tag."""
API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LONGEST_STALL = 20.0
"""Seconds; no test waits longer for a download that does not go on."""


@dataclass
class Repo:
    """Commits and the names that point to them."""

    name: str
    kind: str = "model"
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    """Listed for all, but no file is given out."""

    def commit(self, files: Mapping[str, bytes], *names: str) -> str:
        """A commit of exactly these files, that main and `names` point to from now on."""
        content = "".join(f"{path}{hashlib.sha1(data).hexdigest()}" for path, data in sorted(files.items()))
        sha = hashlib.sha1(f"{self.name}{content}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs |= dict.fromkeys(("main", *names), sha)
        return sha


@dataclass
class FakeHub:
    endpoint: str
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    stalled: str | None = None
    """A file whose second half comes only after `resume`."""
    resume: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when the stalled file's first half is sent."""

    def add(self, name: str, files: Mapping[str, bytes], kind: str = "model", gated: bool = False) -> Repo:
        repo = self.repos[kind, name] = Repo(name, kind, gated=gated)
        repo.commit(files)
        return repo

    def downloads(self) -> list[str]:
        """Requests for the bytes of a file."""
        return [line for line in self.asked if line.startswith("GET") and ("/resolve/" in line or "/large/" in line)]


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _described(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _listed(files: Mapping[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    inside = {path: data for path, data in files.items() if path.startswith(prefix)}
    folders = {
        prefix + "/".join(parts[:depth])
        for path in inside
        for parts in [path.removeprefix(prefix).split("/")]
        for depth in range(1, len(parts))
        if recursive or depth == 1
    }
    here = {path: data for path, data in inside.items() if recursive or "/" not in path.removeprefix(prefix)}
    return [
        *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)),
        *(_described(path, data) for path, data in sorted(here.items())),
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self._answer()

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        self.hub.asked.append(f"{self.command} {unquote(path)}")
        if path.startswith("/large/"):
            self._large(path)
        elif matched := API.fullmatch(path):
            kind, name, verb, revision, below = matched.groups()
            self._api(kind, name, verb, revision, below, query)
        elif matched := RESOLVE.fullmatch(path):
            kind = "dataset" if matched[1] else "model"
            self._resolve(kind, matched[2], unquote(matched[3]), unquote(matched[4]))
        else:
            self._refuse(404, None)

    def _find(self, kind: str, name: str, revision: str | None) -> tuple[Repo, str] | None:
        """(repository, commit), or the hub's own refusals: 401 also for what does not exist."""
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._refuse(401, "RepoNotFound")
        commit = repo.refs.get(revision or "main", revision or "main")
        return (repo, commit) if commit in repo.commits else self._refuse(404, "RevisionNotFound")

    def _api(self, kind: str, name: str, verb: str | None, revision: str | None, below: str | None, query: str) -> None:
        found = self._find(kind, name, unquote(revision) if revision else None)
        if found is None:
            return
        repo, commit = found
        files = repo.commits[commit]
        if verb == "tree":
            below = unquote(below or "")
            if below and not any(path.startswith(f"{below}/") for path in files):
                self._refuse(404, "EntryNotFound")
            else:
                self._json(_listed(files, below, parse_qs(query).get("recursive") in (["True"], ["true"])))
        elif verb == "paths-info":
            self._json([_described(path, files[path]) for path in parse_qs(self.body)["paths"] if path in files])
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            facts = {"id": name, "sha": commit, "siblings": siblings, "gated": "auto" if repo.gated else False}
            self._json(facts | {"private": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0})

    def _resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        found = self._find(kind, name, revision)
        if found is None:
            return
        repo, commit = found
        data = repo.commits[commit].get(path)
        if repo.gated:
            self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif data is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        elif path.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            # another host, as the real one does it: redirects within the hub are followed for the head, too
            where = f"http://localhost:{self.server.server_address[1]}/large/{kind}/{name}/{commit}/{path}"
            self._send(302, b"", linked | {"X-Repo-Commit": commit, "Location": where})
        else:
            self._send(200, data, {"X-Repo-Commit": commit, "ETag": f'"{_blob(data)}"'}, path)

    def _large(self, path: str) -> None:
        _, _, kind, owner, name, commit, file = path.split("/", 6)
        data = self.hub.repos[kind, f"{owner}/{name}"].commits[commit][unquote(file)]
        self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}, unquote(file))

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, headers: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b"", {**named, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], path: str = "") -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and status == 200:
            status, begin, headers = 206, int(wanted[1]), dict(headers)
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            data = data[begin:]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if path and path == self.hub.stalled and not self.hub.resume.is_set():
            half = len(data) // 2
            self.wfile.write(data[:half])
            self.wfile.flush()
            self.hub.reached.set()
            self.hub.resume.wait(LONGEST_STALL)
            data = data[half:]
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was interrupted hangs up: no traceback for that."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Served on a free port of this machine until the block ends."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.hub = hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.resume.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
