"""The first rank's calls, told to another one, are the calls that the other one makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lynx_exp.run import torchrun as ranks


class FakeEngine:
    """Notes the calls that would run the model."""

    tokenizer = staticmethod(str.split)

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def run_lanes(self, count, *, lanes=None, on_step=None):
        self.calls.append(("run_lanes", count, lanes))
        if count < 0:
            raise ValueError("count")
        yield from range(count)

    def measure(self, name):
        self.calls.append(("measure", name))
        return name.upper()

    def bind(self, policy):
        return policy


class FakeEngines:
    references = "references"

    def __init__(self) -> None:
        self.engine = FakeEngine()

    def get(self, config):
        self.engine.calls.append(("get", config.model.parallel))
        return self.engine


def config(parallel="tp"):
    return SimpleNamespace(model=SimpleNamespace(parallel=parallel))


@pytest.fixture
def wire(monkeypatch):
    """What was told; as the first of two ranks."""
    told: list[Any] = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(ranks, "_broadcast", told.append)
    monkeypatch.setattr(ranks._AnnouncingEngine, "running", None)
    return told


def follower_of(told, monkeypatch) -> FakeEngines:
    monkeypatch.setenv("RANK", "1")
    left = list(told)
    monkeypatch.setattr(ranks, "_broadcast", lambda _: left.pop(0))
    engines = FakeEngines()
    ranks.follow(engines)
    return engines


def test_without_torchrun_nothing_changes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # a scheduler's, not torchrun's
    engines = FakeEngines()
    assert ranks.world_size() == 1 and ranks.is_first_rank()
    assert ranks.announce_calls(engines) is engines
    ranks.dismiss()


def test_the_others_make_the_same_calls(wire, monkeypatch):
    engines = FakeEngines()
    led = ranks.announce_calls(engines)
    assert led.references == "references"
    engine: Any = led.get(config())
    assert engine.bind("policy") == "policy" and engine.tokenizer("a b") == ["a", "b"]
    assert list(engine.run_lanes(3, lanes=iter([1, 2]), on_step=print)) == [0, 1, 2]
    with pytest.raises(ValueError, match="count"):
        list(engine.run_lanes(-1))
    assert engine.measure("now") == "NOW"
    ranks.dismiss()
    assert wire[1] == ("run_lanes", (3,), {"lanes": [1, 2]}) and wire[-1] is None
    assert follower_of(wire, monkeypatch).engine.calls == engines.engine.calls


def test_a_call_left_half_done_ends_what_can_be_kept_in_step(wire):
    engine: Any = ranks.announce_calls(FakeEngines()).get(config())
    lanes = engine.run_lanes(3)
    next(lanes)
    with pytest.raises(RuntimeError, match="the other ranks are still in run_lanes; run the same command to continue"):
        engine.measure("now")
    lanes.close()
    with pytest.raises(RuntimeError, match="still in run_lanes"):
        engine.measure("now")
    told = len(wire)
    ranks.dismiss()
    assert len(wire) == told


def test_an_error_in_another_rank_is_not_passed_over(wire, monkeypatch):
    wire += [("get", (config(),), {}), ("no_such_call", (), {}), None]
    with pytest.raises(AttributeError):
        follower_of(wire, monkeypatch)


def test_many_processes_that_share_no_model_are_refused(wire):
    with pytest.raises(ValueError, match="model.parallel=null: torchrun started 2 processes"):
        ranks.announce_calls(FakeEngines()).get(config(None))
    assert not wire
