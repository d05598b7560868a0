"""One process a cell: claims that hold, that are given back, and that outlive nobody for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lynx_exp.store import claims as module
from lynx_exp.store.claims import CLAIM, Claims, Holder, holder_of, is_alive, is_held, this_process

ELSEWHERE = Holder(token="t", host="another-machine", boot="b", pid=1, born="1", job="77")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claims(clock):
    made = Claims(clock=clock)
    yield made
    made.close()


def write(folder: Path, holder: Holder, age_s: float = 0.0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / CLAIM
    path.write_text(json.dumps(asdict(holder)))
    beat(path, age_s)
    return path


def beat(path: Path, age_s: float = 0.0) -> None:
    probe = path.with_name("probe")
    probe.touch()
    stamp = probe.stat().st_mtime_ns - int(age_s * 1e9)
    probe.unlink()
    os.utime(path, ns=(stamp, stamp))


def dead() -> Holder:
    """A process of this machine that is no more."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return replace(this_process(), pid=int(done.stdout), born="1")


def test_a_claim_holds_until_it_is_given_back(tmp_path, claims):
    cell, other = tmp_path / "cell", Claims()
    assert claims.take(cell) and claims.is_mine(cell) and is_held(cell)
    assert not other.take(cell) and not other.is_mine(cell)
    other.give_back(cell)
    assert claims.is_mine(cell), "nobody gives back what is another's"
    claims.give_back(cell)
    assert not is_held(cell) and other.take(cell)
    other.close()
    assert sorted(path.name for path in cell.iterdir()) == []


def test_what_a_claim_says(tmp_path, claims, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    claims.take(tmp_path / "cell")
    holder = holder_of(tmp_path / "cell")
    assert holder is not None and holder.pid == os.getpid() and holder.job == "4711"
    assert str(holder) == f"process {os.getpid()} on {holder.host} (job 4711)"
    assert is_alive(holder) is True
    assert is_alive(replace(holder, born="1")) is False, "the number of a process that is no more comes again"
    assert is_alive(replace(holder, host="another-machine")) is None


def test_the_claim_of_a_dead_process_is_taken_over_at_once(tmp_path, claims):
    write(tmp_path / "cell", dead())
    assert not is_held(tmp_path / "cell")
    assert claims.take(tmp_path / "cell")


def test_another_machine_is_believed_while_its_heart_beats(tmp_path, claims, clock):
    path = write(tmp_path / "cell", ELSEWHERE, age_s=100)
    for _ in range(10):
        assert not claims.take(tmp_path / "cell")
        clock.now += 100
        beat(path)
    assert not claims.take(tmp_path / "cell")
    clock.now += 119
    assert not claims.take(tmp_path / "cell")
    clock.now += 2
    assert claims.take(tmp_path / "cell"), "watched for two minutes, it did not beat"


def test_an_old_claim_is_stale_at_first_sight(tmp_path, claims):
    write(tmp_path / "cell", ELSEWHERE, age_s=121)
    assert not is_held(tmp_path / "cell")
    assert claims.take(tmp_path / "cell")


@pytest.mark.parametrize("age_s", [-3600.0, -1.0])
def test_a_clock_that_went_backwards_does_not_keep_a_claim_alive(age_s, tmp_path, claims, clock):
    write(tmp_path / "cell", ELSEWHERE, age_s=age_s)
    assert not claims.take(tmp_path / "cell")
    clock.now += 121
    assert claims.take(tmp_path / "cell")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": "x"}', "\0" * 100])
def test_what_cannot_be_read_is_waited_for(content, tmp_path, claims, clock):
    cell = tmp_path / "cell"
    cell.mkdir()
    (cell / CLAIM).write_text(content)
    assert holder_of(cell) is None and not claims.take(cell)
    clock.now += 121
    assert claims.take(cell) and claims.is_mine(cell)


def test_a_claim_that_was_taken_over_is_no_longer_mine(tmp_path, claims):
    cell = tmp_path / "cell"
    claims.take(cell)
    write(cell, ELSEWHERE)
    assert not claims.is_mine(cell)
    claims.give_back(cell)
    assert holder_of(cell) == ELSEWHERE


def test_hearts_beat(tmp_path, claims):
    cell = tmp_path / "cell"
    claims.take(cell)
    beat(cell / CLAIM, age_s=1000)
    before = (cell / CLAIM).stat().st_mtime_ns
    claims.beat()
    assert (cell / CLAIM).stat().st_mtime_ns > before
    (cell / CLAIM).unlink()
    claims.beat()  # nothing to beat for
    assert not (cell / CLAIM).exists()


def test_the_thread_beats(tmp_path):
    beaten = threading.Event()

    class Watched(Claims):
        def beat(self) -> None:
            super().beat()
            beaten.set()

    claims = Watched(beat_s=0.001)
    claims.take(tmp_path / "cell")
    assert beaten.wait(20)
    claims.close()


def test_of_many_that_take_over_at_once_one_does(tmp_path):
    """Threads stand in for processes: each has claims of its own."""
    for attempt in range(20):
        cell = tmp_path / str(attempt)
        write(cell, ELSEWHERE, age_s=1000)
        start, won = threading.Barrier(8), []

        def try_it(cell: Path = cell, start: threading.Barrier = start, won: list[Claims] = won) -> None:
            mine = Claims()
            start.wait()
            if mine.take(cell):
                won.append(mine)

        threads = [threading.Thread(target=try_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holders = [claims for claims in won if claims.is_mine(cell)]
        assert len(holders) == 1, Counter(len(won) for _ in [0])
        assert [path.name for path in cell.iterdir()] == [CLAIM], "nothing lies about"
        for mine in won:
            mine.close()


def test_without_hard_links(tmp_path, claims, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.os, "link", refuse)
    cell = tmp_path / "cell"
    assert claims.take(cell) and claims.is_mine(cell)
    assert not Claims().take(cell)
    assert [path.name for path in cell.iterdir()] == [CLAIM]


def test_a_full_disk_is_said(tmp_path, claims, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            claims.take(tmp_path / "cell")
    assert list((tmp_path / "cell").iterdir()) == []
