"""Weights & Biases as a tracker: jobs go to a process of their own, so that no fault there costs the run anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Thread
from time import monotonic
from typing import TYPE_CHECKING

from lynx_exp.tracking.wandb_runs import Place

if TYPE_CHECKING:
    from lynx_exp.config import TrackerConfig
    from lynx_exp.store.read import CellRecord

OFFLINE_WAIT_S = 30.0
"""What `tracker.wait_s` is for uploads, for files on this machine, which must be whole when the job ends."""


class WandbTracker:
    """One run a cell, one a study. Every method returns at once, but for `close`."""

    def __init__(self, config: TrackerConfig, study: Path) -> None:
        self._place = Place.of(asdict(config))
        self._wait_s = config.wait_s if config.mode == "online" else OFFLINE_WAIT_S
        self._study = study
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._news = Condition()
        self._open: set[str] = set()
        """Jobs without an answer, by name."""
        self._logged = 0
        self._failed: dict[str, str] = {}
        self._heard, self._over = 0.0, False
        self._broken = ""

    def log_cell(self, record: CellRecord) -> None:
        self._ask({"cell": str(record.path.resolve()), "name": record.path.name})

    def log_study(self, study: Path) -> None:
        self._ask({"study": str(study.resolve()), "name": f"{study.name} (tables and figures)"})

    def close(self) -> None:
        """Wait for what is on its way, as long as it moves; then say what is missing, and how to make up for it."""
        if self._process is None:
            self._forward_messages()
            return
        self._lines.put(None)
        with self._news:
            self._heard, said = monotonic(), False
            while not self._over and monotonic() - self._heard < self._wait_s:
                moved = self._news.wait(min(1.0, self._wait_s))
                if not moved and not said and self._open:
                    _say(f"wandb: {len(self._open)} more to be written")
                    said = True
        self._forward_messages()

    def _ask(self, job: Mapping[str, str]) -> None:
        if self._broken:
            self._failed[job["name"]] = self._broken
            return
        try:
            if self._process is None:
                self._start()
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"
            self._failed[job["name"]] = self._broken
            return
        with self._news:
            self._open.add(job["name"])
        self._lines.put(json.dumps(job) + "\n")

    def _start(self) -> None:
        self._study.mkdir(parents=True, exist_ok=True)
        data = self._study / "wandb" / "data"  # what uploads need lies with the study, not in the home folder
        environment = {"WANDB_DATA_DIR": str(data)} | dict(os.environ)
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "lynx_exp.tracking.wandb_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for the run alone
        )
        self._lines.put(json.dumps(asdict(self._place)) + "\n")
        Thread(target=self._write, args=(process,), daemon=True).start()
        Thread(target=self._read, args=(process,), daemon=True).start()

    def _write(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        with suppress(OSError, ValueError):  # it is gone, which the reader notices, too
            while (line := self._lines.get()) is not None:
                process.stdin.write(line)
                process.stdin.flush()
        with suppress(OSError, ValueError):
            process.stdin.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answer = json.loads(line)
            with self._news:
                name = answer.get("logged") or answer["failed"]
                self._open.discard(name)
                if "why" in answer:
                    self._failed[name] = answer["why"]
                else:
                    self._failed.pop(name, None)
                    self._logged += 1
                self._heard = monotonic()
                self._news.notify_all()
        code = process.wait()
        process.stdout.close()
        with self._news:
            for name in self._open:
                self._failed.setdefault(name, f"its process ended with code {code}")
            self._open.clear()
            self._over = True
            self._broken = self._broken or f"its process ended with code {code}"
            self._news.notify_all()

    def _forward_messages(self) -> None:
        mend = f"`lynx-results sync {self._study}` uploads from the cells on disk"
        with self._news:
            if self._failed:
                why = list(dict.fromkeys(self._failed.values()))
                more = ", and others" if len(why) > 1 else ""
                _say(f"warning: wandb: {len(self._failed)} not logged ({why[0]}{more}); {mend}")
            if self._logged and self._place.mode == "offline":
                upload = f"`lynx-results sync {self._study} --project {self._place.project}`"
                _say(f"wandb: {self._logged} runs in {self._study / 'wandb'}; {upload} uploads them")
            if self._open:
                _say(f"wandb: {len(self._open)} still going up in the background; should that fail, {mend}")


def _say(line: str) -> None:
    print(f"lynx-exp: {line}", file=sys.stderr)
