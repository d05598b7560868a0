"""A packed sweep of 80 cells, of the demo's kind, is killed at a random counted event, a hundred times over: each time
the same command ends with the bytes of a run that nobody disturbed, and nothing has to be mended by hand."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.store.claims import CLAIM
from tests.run.lab import found

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("LYNX_KILLS", "100"))
DOCUMENTS = int(os.environ.get("LYNX_KILL_DOCUMENTS", "4"))
"""A task. The number of cells is the demo's."""
WHOLE = int(os.environ.get("LYNX_KILL_WHOLE", "10"))
"""One kill in so many is of a sweep on the whole bundled model, all others on its first layer alone: files, lanes and
packs are the same, and most of the time goes into a model."""


class Zygote:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.zygote", str(DOCUMENTS)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def run(self, folder: Path, kill: tuple[str, int] | None = None, *, whole: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        asked = {"folder": str(folder), "kill": kill, "documents": DOCUMENTS, "whole": whole}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.mark.slow
def test_killed_a_hundred_times(zygote, tmp_path, capsys):
    undisturbed = {}
    for whole in (True, False):
        folder = tmp_path / f"undisturbed-{whole}"
        folder.mkdir()
        first = zygote.run(folder, whole=whole)
        assert first["status"] == 0, first
        undisturbed[whole] = found(folder), first["events"]
        assert len(undisturbed[whole][0]) == 80
    rng = random.Random(20261124)
    tally: Counter[str] = Counter()
    differences = 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        whole = number % WHOLE == 0
        reference, events = undisturbed[whole]
        kind = ("commit", "write", "step")[number % 3]
        at = rng.randrange(events[kind])
        killed = zygote.run(folder, (kind, at), whole=whole)
        assert killed["status"] == -9, (number, kind, at, killed)
        tally[kind] += 1
        if number % 5 == 0:  # and once more, while it resumes
            again = zygote.run(folder, ("write", rng.randrange(200)), whole=whole)
            tally["write, resuming"] += again["status"] == -9
        resumed = zygote.run(folder, whole=whole)
        assert resumed["status"] == 0, (number, kind, at, resumed)
        made = found(folder)
        differences += made != reference
        left = [path for path in folder.rglob("*") if path.name == CLAIM or path.name.endswith((".tmp", ".corrupt"))]
        assert made == reference and left == [], (number, kind, at)
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{KILLS} kills ({dict(tally)}) among {events} events: {differences} differences, 0 repairs by hand")
