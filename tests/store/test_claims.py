"""One process a cell: claims that hold, that are given back, and that outlive nobody for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lynx_exp.store import holders
from lynx_exp.store.claims import CLAIM, HOLDER, STALE_S, Claims, holder_of, is_held, sweep_drafts
from lynx_exp.store.hold import ClaimLost, Hold
from lynx_exp.store.holders import Holder, holder_from, is_alive, this_process
from tests.store.claiming import beat, claim_file

ELSEWHERE = Holder(token="t", host="another-machine", boot="b", pids="pid:[1]", pid=1, born="1", job="77")


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
    room = folder / CLAIM / holder.token
    room.mkdir(parents=True)
    path = room / HOLDER
    path.write_text(json.dumps(holder.json()))
    beat(path, age_s)
    return path


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


@pytest.mark.parametrize("field", ["host", "boot", "pids"])
def test_nobody_judges_a_process_that_cannot_be_seen_from_here(field, tmp_path, claims):
    """Containers with one host name differ in their kernel's boot, or in the namespace that their ids are of."""
    there = replace(dead(), **{field: "another"})
    assert is_alive(there) is None
    write(tmp_path / "cell", there)
    assert is_held(tmp_path / "cell") and not claims.take(tmp_path / "cell")


@pytest.mark.parametrize("unknown", ["_boot", "_pid_namespace"])
def test_a_kernel_that_does_not_say_who_it_is_judges_nobody(unknown, tmp_path, monkeypatch):
    holder = replace(dead(), boot="", pids="")
    monkeypatch.setattr(holders, unknown, lambda: "")
    assert is_alive(this_process()) is None and is_alive(holder) is None


def test_a_process_of_which_the_kernel_shows_nothing_is_not_dead(monkeypatch):
    me = this_process()
    monkeypatch.setattr(holders, "_stat", lambda pid: ("", ""))
    assert is_alive(me) is None


def test_a_process_that_ended_and_was_not_asked_for_is_dead():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    zombie = replace(this_process(), pid=child, born=holders._stat(child)[1])
    assert is_alive(zombie) is True
    os.write(writer, b".")
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert is_alive(zombie) is False
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)


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


UNREADABLE = ["", "{", "[]", "null", '{"token": "x"}', "\0" * 100, "[" * 5000]


@pytest.mark.parametrize("content", UNREADABLE)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_cannot_be_read_is_waited_for(form, content, tmp_path, claims, clock):
    """A damaged claim, or one of an older version, which was a file."""
    cell = tmp_path / "cell"
    path = cell / CLAIM / "token" / HOLDER if form == "folder" else cell / CLAIM
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert holder_of(cell) is None and not claims.take(cell)
    clock.now += 121
    assert claims.take(cell) and claims.is_mine(cell)
    claims.give_back(cell)
    assert list(cell.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"pid": "12"}, {"pid": 2**70}, {"pid": -1}, {"pid": 0}, {"pid": True}, {"pid": None}, {"host": 3}, {"job": 7}]
    + [{"boot": None}, {"born": []}, {"pids": None}],
)
def test_a_claim_with_wrong_types_says_nothing(change):
    whole = this_process().json()
    assert holder_from(whole) == Holder(**whole)
    assert holder_from(whole | change) is None


def test_the_claim_of_an_older_version_whose_process_is_gone(tmp_path, claims):
    cell = tmp_path / "cell"
    cell.mkdir()
    (cell / CLAIM).write_text(json.dumps(dead().json()))
    assert not is_held(cell) and claims.take(cell)


def test_a_claim_that_was_taken_over_changes_nothing_any_more(tmp_path, claims, clock):
    cell, other = tmp_path / "cell", Claims(clock=clock, stale_s=-1, me=lambda: replace(ELSEWHERE, token="other"))
    slept = Claims(clock=clock, me=lambda: ELSEWHERE)
    assert slept.take(cell)
    mine = slept.hold(cell)
    mine.write_text(cell / "file", "before")
    assert other.take(cell) and not slept.is_mine(cell)
    theirs = other.hold(cell)
    theirs.write_text(cell / "file", "theirs")
    theirs.make_folder(cell / "lanes")
    theirs.write_text(cell / "lanes" / "1", "lane")
    stamp = claim_file(cell).stat().st_mtime_ns
    for change in (
        lambda: mine.write_text(cell / "file", "mine"),
        lambda: mine.write_json(cell / "new.json", {}),
        lambda: mine.remove(cell / "lanes"),
        lambda: mine.remove(cell / "nothing"),
        lambda: mine.move(cell / "file", cell / "elsewhere"),
        lambda: mine.make_folder(cell / "folder"),
        mine.check,
    ):
        with pytest.raises(ClaimLost):
            change()
    slept.beat()
    slept.give_back(cell)
    assert claim_file(cell).stat().st_mtime_ns == stamp, "a heart that beats for nobody keeps no other's claim alive"
    assert other.is_mine(cell)
    names = {str(path.relative_to(cell)) for path in cell.rglob("*")}
    assert names == {"file", "lanes", "lanes/1", CLAIM, f"{CLAIM}/other", f"{CLAIM}/other/{HOLDER}"}
    assert (cell / "file").read_text() == "theirs"
    other.close()


def test_what_a_hold_does(tmp_path, claims):
    cell = tmp_path / "cell"
    assert claims.take(cell)
    hold = claims.hold(cell)
    hold.make_folder(cell / "lanes")
    hold.write_text(cell / "lanes" / "1", "one")
    hold.make_folder(cell / "lanes")
    hold.move(cell / "lanes" / "1", cell / "lanes" / "2")
    assert (cell / "lanes" / "2").read_text() == "one"
    hold.remove(cell / "lanes")
    hold.remove(cell / "lanes")
    with pytest.raises(ValueError, match="not JSON compliant"):
        hold.write_json(cell / "x.json", float("nan"))
    with pytest.raises(FileNotFoundError):
        hold.move(cell / "nothing", cell / "x")
    assert [path.name for path in cell.iterdir()] == [CLAIM]
    claims.give_back(cell)
    assert list(cell.iterdir()) == []


def test_a_deleted_cell_is_a_lost_claim(tmp_path, claims):
    cell = tmp_path / "cell"
    assert claims.take(cell)
    cell.rename(tmp_path / "aside")
    with pytest.raises(ClaimLost):
        claims.hold(cell).write_text(cell / "file", "mine")
    claims.give_back(cell)
    assert not cell.exists()


def test_hearts_beat(tmp_path, claims):
    cell = tmp_path / "cell"
    claims.take(cell)
    path = claim_file(cell)
    beat(path, age_s=1000)
    before = path.stat().st_mtime_ns
    claims.beat()
    assert path.stat().st_mtime_ns > before


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
        assert len(won) == 1 and won[0].is_mine(cell)
        assert [path.name for path in cell.iterdir()] == [CLAIM], "nothing lies about"
        won[0].close()


def test_a_file_server_that_is_asked_twice(tmp_path, claims, monkeypatch):
    """The answer to a rename was lost, and the second try finds nothing to rename."""
    rename = os.rename

    def twice(source, target):
        rename(source, target)
        if Path(target).name == CLAIM:
            rename(source, target)

    monkeypatch.setattr(os, "rename", twice)
    assert claims.take(tmp_path / "cell") and claims.is_mine(tmp_path / "cell")


def test_drafts_of_the_dead_go_and_those_of_others_stay_until_they_are_old(tmp_path, claims):
    cell = tmp_path / "cell"
    drafts = {"dead": dead(), "mine": this_process(), "there": ELSEWHERE}
    for name, holder in drafts.items():
        room = cell / f".{CLAIM}.{name}.tmp" / holder.token
        room.mkdir(parents=True)
        (room / HOLDER).write_text(json.dumps(holder.json()))
    (cell / f".{CLAIM}.empty.tmp").mkdir()
    sweep_drafts(cell)
    assert {path.name.split(".")[2] for path in cell.iterdir()} == {"mine", "there", "empty"}
    for path in cell.iterdir():
        beat(path, age_s=STALE_S + 1)
    sweep_drafts(cell)
    assert list(cell.iterdir()) == []


def test_a_full_disk_is_said(tmp_path, claims, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            claims.take(tmp_path / "cell")
    assert list((tmp_path / "cell").iterdir()) == []


def test_giving_back_on_a_disk_that_became_read_only_is_no_error(tmp_path, claims, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    cell = tmp_path / "cell"
    assert claims.take(cell)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        claims.give_back(cell)
    assert isinstance(holder_of(cell), Holder) and not isinstance(claims._held.get(cell), Hold)


def test_a_pipe_in_place_of_a_holder_is_not_waited_for(tmp_path):
    (tmp_path / CLAIM / "abc").mkdir(parents=True)
    os.mkfifo(tmp_path / CLAIM / "abc" / HOLDER)
    assert holder_of(tmp_path) is None and not Claims().is_mine(tmp_path)
    (tmp_path / f".{CLAIM}.x.tmp").mkdir()
    os.mkfifo(tmp_path / f".{CLAIM}.x.tmp" / HOLDER)
    sweep_drafts(tmp_path)
