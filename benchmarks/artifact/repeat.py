"""Run experiments one after the other and keep what they gave, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.artifact.claims import Experiment
from benchmarks.artifact.pages import ROOT
from lynx_exp.store.files import write_json
from lynx_exp.store.identity import code_digest, folder_digest


@dataclass(frozen=True, kw_only=True)
class Ran:
    experiment: Experiment
    folder: Path
    """Holds `done.json`, `log.txt` and, of a study, `results/`."""
    seconds: float
    status: int
    """Of the command; 0 is well."""
    last: str
    """Line of its output."""
    again: bool
    """Whether it was run now; else it was kept from before."""

    @property
    def results(self) -> Path:
        return self.folder / "results"


def repeat(experiment: Experiment, folder: Path, *, again: bool, say: Callable[[str], None]) -> Ran:
    """Run the command, unless this code has done so with success. A study continues by itself, cell by cell.

    Args:
        experiment: One that is run here.
        folder: Its own; made if it is not there.
        again: Run it although it is there.
        say: Told the last line of its output from time to time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, asked = folder / "done.json", _asked(experiment)
    kept = _read(done)
    if kept.get("asked") == asked and kept.get("status") == 0 and not again:
        return _ran(experiment, folder, kept, again=False)
    begun = time.monotonic()
    status, last = _run(_command(experiment, folder), folder / "log.txt", say)
    seconds = time.monotonic() - begun + (kept.get("seconds", 0.0) if kept.get("asked") == asked else 0.0)
    found = {"asked": asked, "status": status, "seconds": seconds, "last": last}
    write_json(done, found)
    return _ran(experiment, folder, found, again=True)


def kept(experiment: Experiment, folder: Path) -> Ran | None:
    """What is there of an earlier run, of whatever code."""
    found = _read(folder / "done.json")
    return _ran(experiment, folder, found, again=False) if found.get("status") == 0 else None


def _ran(experiment: Experiment, folder: Path, found: dict[str, Any], *, again: bool) -> Ran:
    return Ran(
        experiment=experiment, folder=folder, again=again, **{k: found[k] for k in ("seconds", "status", "last")}
    )


def _asked(experiment: Experiment) -> str:
    """Command and code: either changes, and it is run again."""
    told = f"{experiment.command}\n{code_digest()}\n{folder_digest(ROOT / 'benchmarks')}"
    return hashlib.sha256(told.encode()).hexdigest()


def _command(experiment: Experiment, folder: Path) -> list[str]:
    """With this interpreter, and its results in `folder`."""
    words = shlex.split(experiment.command)
    programs = {"lynx-exp": ["-m", "lynx_exp"], "python": []}
    rest = words[1:]
    if experiment.writes == "study":
        rest += [f"results={folder / 'results'}"]
    return [sys.executable, *programs[words[0]], *rest]


def _run(command: list[str], log: Path, say: Callable[[str], None]) -> tuple[int, str]:
    """Exit status and last line; all output goes to `log` as it comes."""
    last = ""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if line.strip():
                    last = line.strip()
                    say(last)
        except BaseException:
            process.terminate()
            raise
    return process.returncode, last


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
