"""A Weights & Biases server on loopback, as far as uploads need one; or one that refuses, fails or never answers."""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True)
class Run:
    """One run, as the server came to know it."""

    about: dict[str, Any] = field(default_factory=dict)
    """Of the latest upsert: name, group, job type, tags, config."""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By line of the history file."""
    summary: dict[str, Any] = field(default_factory=dict)
    complete: int = 0
    """How often it was finished."""


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, mood: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mood = mood
        """fine; failing (status 500), refusing (401), mute (takes requests and never answers)."""
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Run] = defaultdict(Run)
        self.artifacts: list[tuple[str, str]] = []
        """(type, name) of each that was begun."""
        self.views: list[dict[str, Any]] = []
        self.over = threading.Event()
        self.before: Callable[[], None] = lambda: None
        """Called before each request is answered."""

    def handle_error(self, *_: Any) -> None:
        """Clients go as they like."""

    def graphql(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        answer = getattr(self, f"_{name}", None)
        return answer(given) if answer is not None else {}

    def _Viewer(self, _: Any) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": "team"}}]}
        return {"viewer": {"id": "u", "entity": "team", "username": "someone", "flags": "{}", "teams": teams}}

    _GetDefaultEntity = _Viewer

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        bucket = None
        if run is not None and run.about:  # also one that was never finished
            bucket = {
                "id": given["name"], "name": given["name"], "displayName": None, "config": "{}", "tags": [],
                "summaryMetrics": json.dumps(run.summary), "wandbConfig": "{}", "notes": "", "logLineCount": 0,
                "historyLineCount": len(run.history), "eventsLineCount": 0, "eventsTail": "[]",
                "historyTail": json.dumps([json.dumps(run.history[max(run.history)])] if run.history else []),
            }  # fmt: skip
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "team"}, "bucket": bucket}}

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        known = {key: value for key, value in given.items() if value is not None}
        self.runs[name].about |= known
        project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "team"}}
        bucket = {"id": name, "name": name, "displayName": given.get("displayName"), "sweepName": None}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0, "project": project}, "inserted": True}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.address}/put"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, _: Any) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given.get("input", given)
        self.artifacts.append((asked["artifactTypeName"], asked["artifactCollectionName"]))
        sequence = {"id": "s", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": "a", "state": "PENDING", "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, _: Any) -> dict[str, Any]:
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": f"{self.address}/put", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = [
            {
                "node": {
                    "id": "f", "name": file["name"], "displayName": file["name"], "storagePath": file["name"],
                    "uploadUrl": f"{self.address}/put", "uploadHeaders": [], "uploadMultipartUrls": None,
                    "artifact": {"id": "a"},
                }
            }
            for file in given["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, _: Any) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}

    def _UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        self.views.append(given)
        return {"upsertView": {"view": {"id": "v", "name": given.get("name", "v")}, "inserted": True}}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        for name, part in sent.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                numbered = {part["offset"] + number: line for number, line in enumerate(lines)}
                self.runs[run].history |= numbered
            elif name == "wandb-summary.json":
                self.runs[run].summary = lines[-1]
        self.runs[run].complete += bool(sent.get("complete"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.before()
        if self.server.mood == "mute":
            self.server.over.wait()
            return
        if self.server.mood in ("failing", "refusing"):
            self._answer({"error": "no"}, 500 if self.server.mood == "failing" else 401)
        elif self.path.endswith("/graphql"):
            asked = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            self._answer({"data": self.server.graphql(name[1] if name else "", asked.get("variables") or {})})
        else:
            stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            if stream:
                self.server.stream(stream[1], json.loads(body))
            self._answer({"exitcode": None, "limits": {}})

    do_PUT = do_GET = do_POST

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(mood: str = "fine") -> Iterator[FakeServer]:
    server = FakeServer(mood)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
