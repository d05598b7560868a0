"""Runs the experiments behind the published numbers and keeps their output.

An experiment that has succeeded with the same command and code is not run again, so that an interrupted
`python -m benchmarks.artifact` continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.artifact.claims import Experiment
from benchmarks.artifact.pages import ROOT
from lynx_exp.store.files import write_json
from lynx_exp.store.identity import code_digest, folder_digest

DONE = "done.json"


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One experiment that has been run, now or earlier."""

    experiment: Experiment
    folder: Path
    """Holds `done.json`, `log.txt` and, for a study, `results/`."""
    seconds: float
    """Wall time, over all runs of the same command and code."""
    ended: date
    status: int
    """Exit status of the command; 0 is success."""
    last: str
    """Last line of its output."""
    again: bool
    """Whether it was run now; False if the output is that of an earlier run."""

    @property
    def results(self) -> Path:
        """The results folder of a study."""
        return self.folder / "results"


class Processes:
    """The commands that run. Another thread may stop them all, and then no more begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def begin(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopped:
                raise InterruptedError("stopped")
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            self._running.add(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._running.discard(process)

    def stop(self) -> None:
        """Ask all of them to end; a study ends with what it has."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def repeat(
    experiment: Experiment,
    folder: Path,
    *,
    again: bool,
    on_line: Callable[[str], None],
    threads: int | None = None,
    processes: Processes | None = None,
) -> Ran:
    """Run an experiment, unless it has succeeded with this command and code. An interrupted study continues.

    Args:
        experiment: An experiment that this machine can run.
        folder: Its folder, which is created if needed.
        again: Run it even if it has succeeded before.
        on_line: Called with each line of its output.
        threads: Threads of its tensor code; None for as many as it likes.
        processes: Through which another thread can stop it.

    Returns:
        The experiment with its exit status; a failure does not raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, digest = folder / DONE, _digest(experiment)
    previous = _read(done)
    if previous.get("asked") == digest and previous.get("status") == 0 and not again:
        return _ran(experiment, folder, previous, again=False)
    begun = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = _command(experiment, folder)
    status, last = _run(command, environment, folder / "log.txt", on_line, processes or Processes())
    continued = previous.get("asked") == digest and previous.get("status") != 0
    seconds = time.monotonic() - begun + (previous.get("seconds", 0.0) if continued else 0.0)
    outcome = {"asked": digest, "status": status, "seconds": seconds, "last": last}
    write_json(done, outcome)
    return _ran(experiment, folder, outcome, again=True)


def previous_run(experiment: Experiment, folder: Path) -> Ran | None:
    """The last run if it succeeded, even with other code; None otherwise."""
    outcome = _read(folder / DONE)
    return _ran(experiment, folder, outcome, again=False) if outcome.get("status") == 0 else None


def _ran(experiment: Experiment, folder: Path, outcome: dict[str, Any], *, again: bool) -> Ran:
    return Ran(
        experiment=experiment,
        folder=folder,
        ended=date.fromtimestamp((folder / DONE).stat().st_mtime),
        again=again,
        **{k: outcome[k] for k in ("seconds", "status", "last")},
    )


def _digest(experiment: Experiment) -> str:
    """Hash of command and code. When it changes, the experiment is run again."""
    content = f"{experiment.command}\n{code_digest()}\n{folder_digest(ROOT / 'benchmarks')}"
    return hashlib.sha256(content.encode()).hexdigest()


def _command(experiment: Experiment, folder: Path) -> list[str]:
    """The command line, with this interpreter and with `folder` for the results."""
    words = shlex.split(experiment.command)
    programs = {"lynx-exp": ["-m", "lynx_exp"], "python": []}
    rest = words[1:]
    if experiment.writes == "study":
        rest += [f"results={folder / 'results'}"]
    return [sys.executable, *programs[words[0]], *rest]


def _run(
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    on_line: Callable[[str], None],
    processes: Processes,
) -> tuple[int, str]:
    """Run a command and append its output to `log`, line by line. Returns (exit status, last line)."""
    last = ""
    process = processes.begin(command, environment)
    try:
        with log.open("a", encoding="utf-8") as file, process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    if line.strip():
                        last = line.strip()
                        on_line(last)
            except BaseException:
                process.terminate()
                raise
    finally:
        processes.end(process)
    return process.returncode, last


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
