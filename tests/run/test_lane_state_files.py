"""Where lanes under way stood, on disk: what is damaged, stale or not written costs a line and never a bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from lynx_exp.checks.all_rules import Validation
from lynx_exp.engine.decoding.lane_state import LaneState
from lynx_exp.engine.kv_cache.kept import Part
from lynx_exp.run.lane_checkpoints import SHARE, LaneCheckpoints
from lynx_exp.run.run_progress import Progress
from lynx_exp.run.state_file import DTYPES, HASH, Unusable, read_state, write_state
from lynx_exp.store.hold import Hold
from tests.run.lab import Lab, found
from tests.run.lane_kills import CELLS, kept, kept_every, kill, not_run_again, undisturbed

__all__ = ["undisturbed"]


def _of_another(kind: str) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        of = json.loads(_head(path)["__metadata__"]["state"])["of"]
        state = read_state(path, of, int(of["lane"]))
        parts = {name: Part.of(part.make().clone()) for name, part in state.parts.items()}
        with path.open("wb") as file:
            write_state(file, of | {kind: "other"}, replace(state, parts=parts))

    return rewrite


def _head(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None  # type: ignore[func-returns-value]


def _described(state: object) -> Callable[[Path], None]:
    """The hash is right, and what the file says of itself is not."""

    def rewrite(path: Path) -> None:
        content, head = path.read_bytes(), _head(path)
        behind = 8 + int.from_bytes(content[:8], "little")
        text = json.dumps(head | {"__metadata__": {"state": json.dumps(state)}}).encode()
        text += b" " * (-len(text) % 8)
        whole = len(text).to_bytes(8, "little") + text + content[behind:-32]
        path.write_bytes(whole + hashlib.sha256(whole).digest())

    return rewrite


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_with_bytes(lambda content: content[: len(content) // 2]), "is damaged"),
    "empty": (_with_bytes(lambda content: b""), "is damaged"),
    "garbage": (_with_bytes(lambda content: b"\x00\xff garbage \n" * 20), "is damaged"),
    "one bit": (_with_bytes(lambda content: content[:-99] + bytes([content[-99] ^ 4]) + content[-98:]), "is damaged"),
    "longer": (_with_bytes(lambda content: content + b" "), "is damaged"),
    "says nothing": (_described({}), "is damaged"),
    "a list": (_described([1]), "is damaged"),
    "of a list": (_described({"of": [], "about": {}}), "is damaged"),
    "other code": (_of_another("code"), "is of another code"),
    "other plan": (_of_another("batch plan"), "is of another batch plan"),
    "other cell": (_of_another("cell"), "is of another cell"),
    "other policy": (_of_another("policy"), "is of another policy"),
    "other torch": (_of_another("packages.torch"), "is of another packages.torch"),
    "other form": (_of_another("form"), "is of another form"),
}


@pytest.fixture(scope="module")
def stopped(model, tmp_path_factory) -> Path:
    lab = Lab(model=model, root=tmp_path_factory.mktemp("stopped"))
    folder = lab.folder()
    kill(lab, CELLS[:1], folder, behind=9)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_or_stale_is_named_once_and_never_used(damage, lab, undisturbed, stopped):
    folder = lab.folder()
    folder.rmdir()
    shutil.copytree(stopped, folder)
    change, why = DAMAGE[damage]
    for path in kept(folder):
        change(path)
    lab.run(CELLS[:1], folder)
    (made,) = found(folder).items()
    assert made[1] == undisturbed[made[0]] and not_run_again(folder) == 0
    for path in kept(stopped):
        assert lab.text().count(f"{path.name}: {why}") == 1
    assert "not used, and the lane begins anew" in lab.text()


def test_validate_knows_what_a_stopped_run_goes_on_from(lab, stopped):
    folder = lab.folder()
    folder.rmdir()
    shutil.copytree(stopped, folder)
    assert kept(folder) and "leftovers" not in {finding.rule for finding in Validation(root=folder).run()}
    state = kept(folder)[0]
    state.with_suffix(".json").write_text("{}")
    said = [finding for finding in Validation(root=folder).run() if finding.rule == "leftovers"]
    assert [finding.file for finding in said] == [f"lanes/{state.name}"], "of a lane that is committed"


def test_the_state_of_another_lane_under_its_name_is_not_used(lab, undisturbed, stopped):
    folder = lab.folder()
    folder.rmdir()
    shutil.copytree(stopped, folder)
    first, *others = kept(folder)
    for path in others:
        path.write_bytes(first.read_bytes())
    lab.run(CELLS[:1], folder)
    (made,) = found(folder).items()
    assert made[1] == undisturbed[made[0]]
    assert lab.text().count("is of another lane") == len(others) > 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_a_disk_that_takes_no_state_costs_one_line(lab, undisturbed, monkeypatch, number):
    folder, write = lab.folder(), Hold.write

    def full(self: Hold, path: Path, content: Any) -> None:
        if path.suffix == ".safetensors":
            raise OSError(number, os.strerror(number))
        write(self, path, content)

    monkeypatch.setattr(Hold, "write", full)
    with kept_every(2):
        assert lab.run(CELLS, folder).failed == 0
    assert found(folder) == undisturbed
    assert lab.text().count(f"states of lanes under way are not written: [Errno {number}]") == 1


def test_a_disk_that_is_nearly_full_is_left_alone(lab, undisturbed, monkeypatch):
    folder = lab.folder()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with kept_every(2):
        assert lab.run(CELLS, folder).failed == 0
    assert found(folder) == undisturbed and not kept(folder)
    assert "and the disk has 1000 B left" in lab.text()


class Writer:
    """Counts what it is given, which takes a while."""

    def __init__(self, clock: SimpleNamespace, takes_s: float) -> None:
        self.clock, self.takes_s, self.written = clock, takes_s, 0
        self.plan = {"task": {"digest": "d"}}

    def keep(self, subtask: str, lane: int, write: Any) -> None:
        self.clock.now += self.takes_s
        self.written += 1

    def note_kept(self) -> None:
        pass


@pytest.mark.parametrize(("takes_s", "times"), [(0.0, 10), (1.0, 10), (60.0, 2)])
def test_states_are_written_by_the_clock_and_take_a_small_share_of_it(tmp_path, takes_s, times):
    """100 minutes of steps of a second, of which writing adds to the clock."""
    clock = SimpleNamespace(now=0.0)
    writer, progress = Writer(clock, takes_s), Progress([], Console(quiet=True))
    identity = SimpleNamespace(cell_id="c", folder=tmp_path)
    attempt: Any = SimpleNamespace(writer=writer, cell=identity, numerics={}, policy=None)
    keeper = LaneCheckpoints("task", [attempt], [attempt], 10.0, progress, lambda: clock.now)
    state = LaneState(lane=0, about={}, parts={"counts": Part.of(torch.zeros(1, 2, 3))})
    for _ in range(6000):
        clock.now += 1
        keeper.between_steps(lambda: iter([(0, state)]))
    assert writer.written == times
    assert writer.written * takes_s <= 2 * SHARE * clock.now


@settings(max_examples=25, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text("abc.0", min_size=1, max_size=6),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
        max_size=6,
    ),
    about=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
)
def test_a_state_file_gives_back_every_byte_and_is_a_safetensors_file(tmp_path_factory, tensors, about):
    path = tmp_path_factory.mktemp("state") / "lane.safetensors"
    made = {name: torch.randn(shape).to(dtype) for name, (dtype, shape) in tensors.items()}
    state = LaneState(lane=3, about=about, parts={name: Part.of(tensor) for name, tensor in made.items()})
    with path.open("wb") as file:
        write_state(file, {"cell": "a"}, state)
    back = read_state(path, {"cell": "a"}, 3)
    assert back.about == about and set(back.parts) == set(made)
    plain = load_file(path)
    assert set(plain) == {*made, HASH}
    for name, tensor in made.items():
        part = back.parts[name]
        assert (part.dtype, part.shape) == (tensor.dtype, tuple(tensor.shape))
        assert part.nbytes == tensor.nbytes
        for given_back in (part.make(), plain[name]):
            assert torch.equal(given_back.view(torch.uint8), tensor.view(torch.uint8))
    with pytest.raises(Unusable, match="is of another cell"):
        read_state(path, {"cell": "b"}, 3)
