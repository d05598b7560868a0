"""Bytes of a step, the rate of a copy and energy: against closed forms, a clock that is told and a driver that is not
there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp import Engine, build_policy
from lynx_exp.engine.decoding.prompts import prefill
from lynx_exp.engine.kv_cache.slots import Slots
from lynx_exp.engine.timing import energy
from lynx_exp.engine.timing.bandwidth import Hardware
from lynx_exp.engine.timing.copy_rate import timed_copy
from lynx_exp.engine.timing.measure import measure
from lynx_exp.engine.timing.step_bytes import StepBytes, step_bytes
from tests.engine.conftest import CONFIG

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
QWEN = SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_key_value_heads": 2}
MODELS = {
    "qwen3_moe": QWEN | {"head_dim": 16, "intermediate_size": 16},
    "qwen2_moe": QWEN | {"shared_expert_intermediate_size": 24, "intermediate_size": 16},
    "granitemoe": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16},
}


def test_bytes_of_a_mixtral_by_hand(engine: Engine) -> None:
    found = step_bytes(engine.model, engine.routers)
    D, I, L, E, V, kv = 64, 64, 3, 8, CONFIG["vocab_size"], 32  # noqa: E741
    attention, norms = 2 * D * D + 2 * D * kv, 2 * D
    once = 4 * (L * (attention + norms + E * D) + D + V * D)
    assert found == StepBytes(once=once, expert=4 * 3 * D * I, row=0, position=4 * 2 * kv * L, layers=L)
    assert found.of(active=2.5, rows=3, positions=10) == once + L * 2.5 * found.expert + 10 * found.position


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_counts_once_and_the_table_only_where_it_is_the_head(kind: str, tied: bool) -> None:
    built = Engine.from_config(kind, MODELS[kind] | {"tie_word_embeddings": tied})
    found = step_bytes(built.model, built.routers)
    assert found is not None
    whole = sum(weight.nbytes for weight in built.model.parameters())
    unread = 0 if tied else built.model.get_input_embeddings().weight.nbytes
    every = found.of(active=built.num_experts, rows=0, positions=0)
    assert every == whole - unread and found.expert == 3 * 32 * 16 * 4
    with torch.inference_mode():
        slots = Slots(prefill(built.model, [(1, 2)]), 2, 10)
    kept = sum(t.nbytes for t in (*slots.keys, *slots.values, *slots.states.values()))
    assert 2 * (found.row + 10 * found.position) == kept


def test_half_the_width_is_half_the_bytes() -> None:
    single, half = (
        Engine.from_config("mixtral", CONFIG, dtype=dtype, experts_implementation="grouped_mm")
        for dtype in ("float32", "bfloat16")
    )
    found = [step_bytes(each.model, each.routers) for each in (single, half)]
    assert found[0] is not None and found[1] is not None
    assert found[0].of(active=3, rows=2, positions=7) == 2 * found[1].of(active=3, rows=2, positions=7)


def test_a_model_whose_experts_cannot_be_told_has_no_bytes(engine: Engine) -> None:
    strange = [SimpleNamespace(parent=torch.nn.Linear(2, 2), num_experts=8, module=None)]
    assert step_bytes(engine.model, strange) is None  # type: ignore[arg-type]


def test_a_copy_is_read_and_written_and_its_first_round_does_not_count() -> None:
    ticks = [0.0, 9.0, *(start + part for start in range(10, 16) for part in (0, 0.5))]
    ticks[-1] -= 0.25  # the fastest
    clock = iter(ticks).__next__
    assert timed_copy(torch.device("cpu"), 1000, 3, clock) == pytest.approx(2 * 1000 * 3 / 0.25 / 1e9)


def test_a_copy_on_this_machine_has_a_rate() -> None:
    assert timed_copy(torch.device("cpu"), 2**22, 1) > 0.01


@given(st.lists(st.tuples(st.floats(1, 1e12), st.floats(0.01, 1e4)), min_size=1, max_size=9), st.floats(0.1, 5000))
def test_shares_are_means_of_the_steps_rates(steps: list[tuple[float, float]], rate: float) -> None:
    read = StepBytes(once=0, expert=0, row=0, position=0, layers=1)
    alone, two = (Hardware(bytes=read, copy_gb_s=rate, devices=n).bandwidth(steps) for n in (1, 2))
    rates = [each / ms * 1000 / 1e9 for each, ms in steps]
    assert alone.gb_s == pytest.approx(sum(rates) / len(rates)) and alone.s_mbu == pytest.approx(alone.gb_s / rate)
    assert two.s_mbu == pytest.approx(alone.s_mbu / 2) and two.step_gb == alone.step_gb


def test_steps_that_move_at_the_rate_of_a_copy_use_all_of_it(engine: Engine, prompts: list[list[int]]) -> None:
    """A clock by which every step takes what its bytes take at 1 GB/s, at vanilla's experts."""
    read = step_bytes(engine.model, engine.routers)
    assert read is not None
    lane, active = prompts[:4], 8.0
    positions = [sum(map(len, lane)) + 4 * (step + 1) for step in range(3)]
    seconds = [read.of(active=active, rows=4, positions=each) / 1e9 for each in positions]

    def beats() -> Iterator[float]:
        now = 0.0
        for turn in count():
            yield now
            now += seconds[turn % 3]
            yield now

    ticks = beats()
    with torch.inference_mode():
        timing = measure(
            engine.model, engine.routers, lane, engine._lane_alone, {}, "decode", None, new_tokens=3, repeats=2,
            max_repeats=2, precision=0.5, on_step=lambda _: None, clock=ticks.__next__,
        )  # fmt: skip
    assert timing.bandwidth("vanilla") is None and timing.positions == tuple(positions)
    whole = replace(timing, hardware=Hardware(bytes=read, copy_gb_s=1.0), active_experts={"vanilla": active})
    used = whole.bandwidth("vanilla")
    assert used is not None and used.gb_s == pytest.approx(1.0) and used.s_mbu == pytest.approx(1.0)


def test_what_a_real_measurement_says_of_the_hardware(engine: Engine, prompts: list[list[int]]) -> None:
    policies = {"two": build_policy("lynx_v1_latency", keep_experts=2)}
    timing = engine.measure(prompts, batch_size=8, policies=policies, new_tokens=3, repeats=2)
    vanilla, two = timing.bandwidth("vanilla"), timing.bandwidth("two")
    assert vanilla is not None and two is not None and timing.hardware is not None
    read = timing.hardware.bytes
    fewer = read.layers * (timing.active_experts["vanilla"] - 2) * read.expert
    assert vanilla.step_gb - two.step_gb == pytest.approx(fewer / 1e9)
    assert two.s_mbu == pytest.approx(two.gb_s / timing.hardware.copy_gb_s) and two.gb_s > 0
    assert timing.joules_per_token == {}, "a CPU has no counter"


class Driver:
    """In place of `pynvml`: a card that draws so many watts by a clock of its own."""

    class NVMLError(Exception):
        pass

    def __init__(self, watts: float, *, counts: bool = True) -> None:
        self.seconds, self.watts, self.counts = 0.0, watts, counts
        self.asked: list[str] = []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return round(1000 * self.watts * self.seconds)

    def turn(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver(watts=300.0)
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.setattr(energy, "_uuid", lambda device: f"GPU-{device.index}")
    return found


CARDS = {torch.device("cuda", 0), torch.device("cuda", 1)}


def test_joules_of_a_token_are_those_of_enough_turns(driver: Driver) -> None:
    meter = energy.meter_of(CARDS)
    assert meter is not None and sorted(driver.asked) == ["GPU-0", "GPU-1"]
    turns = {"vanilla": lambda: driver.turn(0.5), "half": lambda: driver.turn(0.25), "slow": lambda: driver.turn(7.0)}
    found = energy.joules_per_token(turns, 10, meter, lambda: driver.seconds)
    assert found == pytest.approx({"vanilla": 2 * 300 * 0.05, "half": 2 * 300 * 0.025, "slow": 2 * 300 * 0.7})
    assert driver.seconds == 0.5 + 2.0 + 0.25 + 2.0 + 7.0 + 7.0


def test_where_nothing_counts_there_is_no_meter(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy.meter_of({torch.device("cpu")}) is None and energy.meter_of(set()) is None
    driver.counts = False
    assert energy.meter_of(CARDS) is None, "a slice of a card, an old driver"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.meter_of(CARDS) is None, "the package is not installed"
