"""`lynx-results sync` is killed or stopped at counted requests to the server and steps of the file system: its wandb
process ends with it, and the same command afterwards brings the server to what an unharmed one leaves there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.store.read import read_cells
from tests.kills.test_verb_kills import ENDS, points, ran
from tests.kills.verb_zygote import Zygote
from tests.tracking.fake_server import FakeServer, serving

pytestmark = pytest.mark.slow
__all__ = ["ran"]

COMMAND = ("sync", "study", "--project", "moe")
HOME = ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME")


@pytest.fixture(scope="module")
def zygote(ran: Path) -> Iterator[Zygote]:
    made = Zygote(ran)
    yield made
    made.close()


class Nth:
    """Sends a signal to a process before the server answers the n-th request; from then on it may answer nobody."""

    def __init__(self, server: FakeServer, at: int | None, number: int, *, mute: bool = False) -> None:
        self.seen, self.pid = 0, threading.Event()
        self._server, self._at, self._signal, self._mute = server, at, number, mute
        self._lock, self.process = threading.Lock(), 0

    def __call__(self) -> None:
        with self._lock:
            self.seen += 1
            if self.seen - 1 != self._at:
                return
        if self._mute:
            self._server.mood = "mute"
        self.pid.wait()
        os.kill(self.process, self._signal)


def synced(
    zygote: Zygote, folder: Path, server: FakeServer, *, at: int | None = None, step: int | None = None,
    number: int = signal.SIGKILL, mute: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """How it ended; `requests`: how many there were."""
    server.before = nth = Nth(server, at, number, mute=mute)
    home = {name: str(folder / "home") for name in HOME}
    given = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
    nth.process = zygote.start(folder, *COMMAND, at=step, number=number, **home, **given)
    nth.pid.set()
    return zygote.end() | {"requests": nth.seen}


def there(server: FakeServer) -> dict[str, Any]:
    """What the server knows, but for when, how long, and how often."""
    found = {}
    for name, run in server.runs.items():
        known = asdict(run)
        about = {key: known["about"].get(key) for key in ("project", "groupName", "displayName", "jobType", "tags")}
        history = [_timeless(line) for _, line in sorted(known["history"].items())]
        found[name] = (about, _timeless(known["summary"]), history, run.complete > 0)
    return found


OF_THE_MOMENT = ("_timestamp", "_runtime", "_wandb", "artifact_path", "_latest_artifact_path")
"""The last two are names that wandb draws by chance."""


def _timeless(line: dict[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: plain(entry) for key, entry in value.items() if key not in OF_THE_MOMENT}

    return json.dumps(plain(line), sort_keys=True)


@pytest.fixture(scope="module")
def whole(zygote: Zygote, ran: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(ran, folder / "study")
    with serving() as server:
        done = synced(zygote, folder, server)
        assert done["status"] == 0, done
        assert len(server.runs) == 4 and all(run.complete for run in server.runs.values())
        return {"there": there(server), "requests": done["requests"], "steps": done["events"]}


def check(zygote: Zygote, folder: Path, whole: dict[str, Any], stop: Callable[[FakeServer], None]) -> None:
    shutil.copytree(whole["ran"], folder / "study", copy_function=shutil.copy2)
    with serving() as server:
        stop(server)
        assert all(cell.done and cell.set_aside is None for cell in read_cells(folder / "study"))
        server.mood = "fine"
        again = synced(zygote, folder, server)
        assert again["status"] == 0, again
        assert there(server) == whole["there"]
        notes = sorted((folder / "study" / "wandb" / "logged").glob("*.json"))
        assert len(notes) == 3 and all(json.loads(note.read_text()) for note in notes)
    shutil.rmtree(folder)


def all_done(ended: dict[str, Any]) -> bool:
    """Whether the signal came too late: how much wandb sends of itself, and so when the n-th request is, depends on
    the time that all takes."""
    return "(tables and figures): run" in ended["out"]


@pytest.mark.parametrize("what", ["request", "step"])
def test_killed(what: str, zygote: Zygote, whole: dict[str, Any], ran: Path, tmp_path: Path) -> None:
    whole["ran"], killed_in_time = ran, 0
    for at in points(whole["requests"] if what == "request" else len(whole["steps"]), 5):

        def stop(server: FakeServer, at: int = at) -> None:
            killed = synced(zygote, tmp_path / str(at), server, **{"at" if what == "request" else "step": at})
            assert killed["status"] == -signal.SIGKILL or all_done(killed), (at, killed)
            nonlocal killed_in_time
            killed_in_time += killed["status"] == -signal.SIGKILL and not all_done(killed)

        check(zygote, tmp_path / str(at), whole, stop)
    assert killed_in_time > 1


@pytest.mark.parametrize("mute", [False, True], ids=["answers", "mute"])
@pytest.mark.parametrize("number", ENDS, ids=["SIGINT", "SIGTERM"])
def test_stopped(
    number: signal.Signals, mute: bool, zygote: Zygote, whole: dict[str, Any], ran: Path, tmp_path: Path
) -> None:
    """Also where the server has stopped to answer: what is on its way is given up."""
    whole["ran"], stopped_in_time = ran, 0
    code, word = ENDS[number]
    for at in points(whole["requests"] - 2, 3):

        def stop(server: FakeServer, at: int = at) -> None:
            stopped = synced(zygote, tmp_path / str(at), server, at=at, number=number, mute=mute)
            line = f"lynx-results: {word}; what is printed is done, the same command does it all\n"
            assert (stopped["status"], stopped["err"]) == (code, line) or all_done(stopped), (at, stopped)
            nonlocal stopped_in_time
            stopped_in_time += not all_done(stopped)

        check(zygote, tmp_path / str(at), whole, stop)
    assert stopped_in_time > 0
