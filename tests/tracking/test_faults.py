"""Whatever is wrong with wandb, a run loses neither a cell nor more than a second."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from time import monotonic

import pytest

from lynx_exp.config import TrackerConfig
from lynx_exp.store.read import CellRecord
from lynx_exp.tracking import wandb_tracker as tracking
from lynx_exp.tracking.wandb_tracker import WandbTracker
from tests.tracking.conftest import Write
from tests.tracking.fake_server import serving

KEY = "0" * 40
BURST_S = 1.0
SLACK_S = 1.0
"""For a busy machine."""

Open = Callable[..., WandbTracker]


@pytest.fixture
def opened(write: Write, tmp_path: Path) -> Iterator[Open]:
    """Trackers of `tmp_path`/demo whose processes end with the test."""
    made: list[WandbTracker] = []

    def tracker(**config: object) -> WandbTracker:
        made.append(WandbTracker(TrackerConfig(name="wandb", **config), tmp_path / "demo"))  # type: ignore[arg-type]
        return made[-1]

    yield tracker
    for one in made:
        if one._process is not None:
            one._process.kill()
            with one._news:
                assert one._news.wait_for(lambda one=one: one._over, timeout=20)


def burst(tracker: WandbTracker, records: list[CellRecord]) -> float:
    """Seconds that a burst of calls and the end take."""
    started = monotonic()
    for record in records:
        tracker.log_cell(record)
    calls = monotonic() - started
    assert calls < BURST_S
    tracker.close()
    return monotonic() - started


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("mood", ["closed", "failing", "refusing", "mute"])
def test_a_server_that_is_no_use(
    mood: str, opened: Open, write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    records = [write(f"cell{number}") for number in range(5)]
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving("fine" if mood == "closed" else mood) as server:
        monkeypatch.setenv("WANDB_BASE_URL", closed_port() if mood == "closed" else server.address)
        tracker = opened(mode="online")
        assert burst(tracker, records) < BURST_S + TrackerConfig().wait_s + SLACK_S
        said = capfd.readouterr().err
        assert said.startswith("lynx-exp: ") and f"`lynx-results sync {records[0].path.parent}`" in said
        assert "Traceback" not in said


def test_no_key_is_said_once(opened: Open, write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    records = [write(f"cell{number}") for number in range(3)]
    tracker = opened(mode="online")
    tracker.log_cell(records[0])
    with tracker._news:
        assert tracker._news.wait_for(lambda: bool(tracker._failed), timeout=60)
    burst(tracker, records)
    (line,) = capfd.readouterr().err.splitlines()
    assert "3 not logged (Unreachable: UsageError: No API key configured" in line and "lynx-results sync" in line


FAKES = {
    "an init that raises": ("def init(**_): raise RuntimeError('no init\\nat all')", "RuntimeError: no init at all"),
    "a log that raises": (
        """
        class Run:
            resumed, starting_step = False, 0
            def define_metric(self, *_, **__): pass
            def log(self, *_): raise OSError('no log')
            def finish(self, **_): raise KeyError('nor a finish')
        def init(**_): return Run()
        Histogram = lambda **_: None
        """,
        "OSError: no log",
    ),
    "a process that dies": ("import os\ndef init(**_): os._exit(3)", "its process ended with code 3"),
    "an import that fails": ("raise ImportError('no wandb')", "ImportError: no wandb"),
    "much that is printed": (
        "def init(**_):\n    print('x' * 10**6)\n    raise ValueError('then')",
        "ValueError: then",
    ),
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_wandb_that_fails(
    fake: str, opened: Open, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, why = FAKES[fake]
    (tmp_path / "fakes" / "wandb").mkdir(parents=True)
    rest = "Settings = setup = lambda **_: None\nclass errors:\n    Error = ZeroDivisionError\n"
    (tmp_path / "fakes" / "wandb" / "__init__.py").write_text(rest + dedent(source))
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    records = [write(f"cell{number}") for number in range(3)]
    burst(opened(), records)
    *progress, line = capfd.readouterr().err.splitlines()
    assert all(re.fullmatch(r"lynx-exp: wandb: \d more to be written", one) for one in progress) and len(progress) < 2
    assert line.startswith("lynx-exp: warning: wandb: 3 not logged (") and why in line
    assert line.endswith(f"`lynx-results sync {tmp_path}/demo` uploads from the cells on disk")


def test_one_that_hangs_holds_up_nothing(
    opened: Open, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fakes" / "wandb").mkdir(parents=True)
    text = "import threading\nSettings = setup = lambda **_: None\ndef init(**_): threading.Event().wait()\n"
    (tmp_path / "fakes" / "wandb" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "fakes")
    monkeypatch.setattr(tracking, "OFFLINE_WAIT_S", 0.2)
    record, many = write(), 2000  # more than a pipe holds
    others = [replace(record, path=record.path.with_name(f"cell{number}")) for number in range(1, many)]
    records = [record, *others]
    assert burst(opened(), records) < 1 + SLACK_S
    assert f"{many} still going up in the background" in capfd.readouterr().err


def test_a_process_that_cannot_start(
    opened: Open, write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    burst(opened(), [write()])
    assert "1 not logged (FileNotFoundError" in capfd.readouterr().err


FULL = """
import sys
from pathlib import Path
from time import monotonic
from lynx_exp.config import TrackerConfig
from lynx_exp.store.read import read_cell
from lynx_exp.tracking import open_tracker

study = Path(sys.argv[1])
with (study / "wandb" / "filler").open("wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(1024))
    except OSError as error:
        assert error.errno == 28, error
tracker, started = open_tracker(TrackerConfig(name="wandb"), study), monotonic()
for cell in sorted(study.glob("cell*")):
    tracker.log_cell(read_cell(cell))
assert monotonic() - started < 1
tracker.close()
print("went on")
"""


def test_a_full_disk(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: a file system of 64 KiB, in a mount namespace of our own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here (unshare -rm)")
    records = [write(f"cell{number}") for number in range(3)]
    study = records[0].path.parent
    (study / "wandb").mkdir()
    (tmp_path / "full.py").write_text(FULL)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(study / "wandb"))
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1/wandb" && exec "$2" "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", str(study), sys.executable, str(tmp_path / "full.py")],
        capture_output=True,
        text=True,
        env=dict(os.environ) | {"PYTHONPATH": str(Path(tracking.__file__).parents[2])},
    )
    assert done.returncode == 0 and done.stdout == "went on\n", done.stderr
    assert "3 not logged (" in done.stderr and "Traceback" not in done.stderr
