"""A plan on hardware that is not here: numbers by hand, laws, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from lynx_exp.config import Config, HardwareConfig, ModelConfig, PackConfig
from lynx_exp.engine.timing.step_bytes import StepBytes
from lynx_exp.run.prepare_cells import prepare_cells
from lynx_exp.run.roofline import Machine, demand_of, step_seconds
from tests.run.fakes import TINY, FakeTask

CARD = HardwareConfig(name="card", label="a card", memory_gib=80.0, bandwidth_gb_s=1000.0, tflops=100.0)
READ = StepBytes(once=10**9, expert=10**8, row=0, position=10**5, layers=10)
LYNX = {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}
SHAPE = {"model_type": "mixtral", **TINY}


@pytest.fixture
def planned(bench: Any) -> Callable[..., str]:
    def plan(*configs: Config) -> str:
        before = len(bench.text())
        bench.run([replace(one, plan=True) for one in configs])
        text: str = bench.text()[before:]
        return text

    return plan


def on(**fields: Any) -> dict[str, Any]:
    return {"plan": True, "hardware": replace(CARD, **fields)}


def test_a_step_by_hand() -> None:
    one = Machine(one=CARD, devices=1, together=False)
    read = 10**9 + 10 * 2 * 10**8 + 1 * 500 * 10**5
    assert step_seconds(READ, one, 8, 2, 1, 500.0) == pytest.approx(read / 1e12), "one row runs K experts"
    active = 8 * (1 - (1 - 2 / 8) ** 4)
    read4 = 10**9 + 10 * active * 10**8 + 4 * 500 * 10**5
    assert step_seconds(READ, one, 8, 2, 4, 500.0) == pytest.approx(read4 / 1e12)
    many = 100_000  # then operations are more than bytes: 2 a weight of 2 bytes
    assert step_seconds(READ, one, 8, 2, many, 0.0) == pytest.approx(many * (10**9 + 10 * 2 * 10**8) / 1e14)


def test_slices_work_at_once_and_layers_one_after_another() -> None:
    one, slices, layers = (Machine(one=CARD, devices=n, together=at_once) for n, at_once in ((1, 0), (4, 1), (4, 0)))
    times = [step_seconds(READ, machine, 8, 2, 16, 100.0) for machine in (one, slices, layers)]
    assert times[1] == pytest.approx(times[0] / 4) and times[2] == times[0]


@given(rows=st.integers(1, 4096), more=st.integers(1, 100), top_k=st.integers(1, 8), context=st.floats(0, 1e5))
def test_more_rows_take_longer_a_step_and_less_each(rows: int, more: int, top_k: int, context: float) -> None:
    one = Machine(one=CARD, devices=1, together=False)
    few, many = (step_seconds(READ, one, 8, top_k, each, context) for each in (rows, rows + more))
    assert few <= many and many / (rows + more) <= few / rows * (1 + 1e-9)


def test_what_a_pack_computes(bench: Any, config: Callable[..., Config]) -> None:
    cells = prepare_cells([config(), config(LYNX, batch_size=3)], bench.load)
    demand = demand_of(cells)
    assert demand.decode == 2 * 5 * 3, "two cells of five requests of three tokens"
    assert demand.prefill == pytest.approx(5 * len("question 0") / 4), "prompts once"
    assert demand.rows == 5 + 5, "lanes of 2, 2, 1 and of 3, 2"
    assert demand.context == pytest.approx(len("question 0") / 4 + 1.5)
    (choices,) = prepare_cells([config(subtasks=("choice",))], bench.load)
    scored = demand_of([choices])
    assert scored.decode == 0 and scored.prefill == pytest.approx((5 * len("question 0") + 10 * len(" choice 0")) / 4)


def test_it_is_told_as_no_measurement(planned: Callable[..., str], config: Callable[..., Config]) -> None:
    text = planned(config(**on()), config(LYNX, **on()))
    assert "roofline, not measured: mixtral (random " in text
    assert ") in bfloat16 on 1 x a card: at least " in text and " GPU hours, 0:00 on the clock" in text
    assert "time:" not in text and "memory:" not in text, "nothing of this machine"
    assert ") in float32 on 1 x a card: " in planned(config(dtype="float32", **on()))
    assert ") in float32 on 1 x a card: " in planned(config(**on(device="cpu"))) and " CPU hours" in planned(
        config(**on(device="cpu"))
    )


def test_what_does_not_fit_is_told_what_would(planned: Callable[..., str], config: Callable[..., Config]) -> None:
    model = ModelConfig(kind="hub", id="no/where", shape=SHAPE)
    text = planned(config(model=model, **on(memory_gib=2.0)))
    assert "no/where in bfloat16 DOES NOT FIT on 1 x a card: weights 2.8 GiB" in text
    assert "of 2.0 GiB; 2 would do: hardware.devices=2 with model.parallel=tp, under torchrun" in text
    assert "GPU hours" not in text
    split = replace(model, parallel="tp")
    assert "on 2 x a card: at least" in planned(config(model=split, **on(memory_gib=2.0, devices=2)))
    text = planned(config(model=model, **on(memory_gib=2.0, devices=2)))
    assert "hardware.devices=2: no/where is on one without model.parallel or device_map" in text
    assert "DOES NOT FIT on 1 x" in text
    heads = replace(model, shape=SHAPE | {"num_key_value_heads": 32})
    text = planned(config(model=heads, **on(memory_gib=0.125)))
    assert "; 32 would do, that is 4 machines of 8: hardware.devices=32 with model.parallel=tp" in text
    attention = {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8}
    dbrx = replace(model, shape={"model_type": "dbrx", "attn_config": attention})  # transformers has no plan for it
    assert "8 would do: hardware.devices=8 with model.device_map=auto" in planned(
        config(model=dbrx, **on(memory_gib=1.0))
    )
    text = planned(config(model=dbrx, **on(memory_gib=0.125)))
    assert "up to 64 do not hold it, nor one machine of 8 by layers (tp: transformers has no tp plan for the" in text
    assert "GiB would do, or a smaller model" in planned(config(model=model, **on(memory_gib=1.0, device="cpu")))


def test_rows_are_what_fits(planned: Callable[..., str], config: Callable[..., Config]) -> None:
    pack = PackConfig(max_rows=4)
    assert "; 5 rows of up to 13 positions at once" in planned(config(**on()))
    assert "; 4 rows of up to 13 positions at once" in planned(config(pack=pack, **on()))


@pytest.mark.parametrize("field", ["memory_gib", "bandwidth_gb_s", "tflops"])
def test_hardware_needs_its_numbers(field: str) -> None:
    with pytest.raises(ValueError, match=rf"hardware\.{field}=null: must be above 0 for hardware=card"):
        replace(CARD, **{field: None})
    with pytest.raises(ValueError, match=rf"hardware\.{field}=-1: must be above 0"):
        replace(CARD, **{field: -1.0})


def test_a_run_takes_no_hardware_by_name(config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match="hardware=card: only plan=true goes by it; a run takes what device=cpu is"):
        config(hardware=CARD)


def test_what_is_spread_over_ranks_is_what_transformers_plans_split(planned: Callable[..., str], config: Any) -> None:
    """By hand: the router and the norms are whole on every rank, all else in halves; keys and values too."""
    from lynx_exp.run.memory_by_device import Spread, parts

    model = ModelConfig(kind="hub", id="no/where", shape=SHAPE)
    (cell,) = prepare_cells([config(model=model, plan=True)], lambda *_, **__: FakeTask("gen", "generate", 5))
    ((whole,), (tp, _), (ep, other)) = (
        parts(cell, "bfloat16", Spread(how=how, devices=n), 80.0) or ()
        for how, n in (("none", 1), ("tp", 2), ("ep", 2))
    )
    assert ep == other and whole.kept == 1.0 and (tp.kept, ep.kept) == (0.5, 1.0)
    assert whole.weights / 2 < tp.weights < ep.weights < whole.weights


def test_slices_that_cut_heads_and_plans_that_there_are_not(planned: Callable[..., str], config: Any) -> None:
    model = ModelConfig(kind="hub", id="no/where", shape=SHAPE, parallel="tp")
    heads = AutoConfig.for_model(**SHAPE).num_key_value_heads
    text = planned(config(model=model, **on(devices=2 * heads)))
    assert f"CANNOT BE SPREAD over {2 * heads} x a card by tp: its {heads} key-value heads are not a multiple" in text
    attention = {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8}
    dbrx = replace(model, shape={"model_type": "dbrx", "attn_config": attention})
    text = planned(config(model=dbrx, **on(devices=2)))
    assert "CANNOT BE SPREAD over 2 x a card by tp: transformers has no tp plan for the experts of dbrx; one " in text
    with pytest.raises(ValueError, match="model.parallel=tp: transformers has no tp plan for the experts of dbrx; use"):
        planned(config(model=dbrx))


def test_layers_fill_devices_in_order(config: Any) -> None:
    from lynx_exp.run.memory_by_device import Spread, parts

    model = ModelConfig(kind="hub", id="no/where", shape=SHAPE)
    (cell,) = prepare_cells([config(model=model, plan=True)], lambda *_, **__: FakeTask("gen", "generate", 5))
    (whole,) = parts(cell, "bfloat16", Spread(how="none", devices=1), 80.0) or ()
    for devices in (1, 2, 3):
        found = parts(cell, "bfloat16", Spread(how="device_map", devices=devices), 80.0) or ()
        assert sum(part.weights for part in found) == pytest.approx(whole.weights)
        assert sum(part.kept for part in found) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="GiB of its weights are on no device"):
        parts(cell, "bfloat16", Spread(how="device_map", devices=2), whole.weights / 4)
