"""The process that talks to Weights & Biases for a run, so that the run need neither wait for it nor survive it.

It takes jobs as lines of JSON on its standard input, the first being the place, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from time import monotonic
from typing import IO

from lynx_exp.store.read import read_cell
from lynx_exp.tracking.study_content import figures_of, tables_of
from lynx_exp.tracking.wandb_runs import Place, log_cell, log_study, one_line

PAUSE_S = 60.0
"""After a failure online: until then nothing is tried, since it would wait for the same server."""
LEFT_OVER_S = 900
"""How long it goes on when the run has ended."""


def main() -> None:
    answers = _own_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run; what is done is still shown
    place = Place(**json.loads(sys.stdin.readline()))
    silent_until, reason = 0.0, ""
    for line in _lines():
        job = json.loads(line)
        if monotonic() < silent_until:
            _say(answers, failed=job["name"], why=reason)
            continue
        try:
            _do(job, place)
        except BaseException as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            silent_until = monotonic() + (PAUSE_S if place.mode == "online" else 0.0)
            _say(answers, failed=job["name"], why=reason)
        else:
            _say(answers, logged=job["name"])


def _lines() -> Iterator[str]:
    """Jobs as they come. When no more can come, those that are left have `LEFT_OVER_S`."""
    waiting: Queue[str | None] = Queue()

    def read() -> None:
        for line in sys.stdin:
            waiting.put(line)
        waiting.put(None)
        signal.alarm(LEFT_OVER_S)

    Thread(target=read, daemon=True).start()
    while (line := waiting.get()) is not None:
        yield line


def _do(job: Mapping[str, str], place: Place) -> None:
    if "cell" in job:
        log_cell(read_cell(Path(job["cell"])), place)
        return
    study = Path(job["study"])
    log_study(study, place, name=study.name, tables=tables_of(study), figures=figures_of(study))


def _own_stdout() -> IO[str]:
    """Where answers go; what others print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], **what: str) -> None:
    with suppress(OSError):  # the run is over, and nobody reads it
        answers.write(json.dumps(what) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
