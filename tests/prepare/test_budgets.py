"""`policy.per_layer=calibrated`: the programme against brute force, the table against its definition, the command, and
what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.models import Attachment, Rows, find_routers, fingerprint
from lynx_exp.models.attach import bind
from lynx_exp.models.tiny import tiny_model
from lynx_exp.prepare.align import rows_of_positions
from lynx_exp.prepare.measure_budgets import measure_budgets
from lynx_exp.routing import ModelShape, PerLayer, build_policy
from lynx_exp.routing.budgets import Budgets, allocate, budget_digest, measured_budgets, with_budgets
from tests.prepare.test_calibrate import calibrate, cell, engine, model_config

IDS = torch.randint(0, 128, (6, 9), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(9) < torch.tensor([9, 9, 7, 9, 5, 9])[:, None]
SHAPE = ModelShape(num_experts=8, top_k=2, num_layers=3, fingerprint=lambda: "mine")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@given(st.data())
def test_as_good_as_brute_force_whatever_the_budgets(data: st.DataObject) -> None:
    budgets = sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    layers = data.draw(st.integers(1, 4))
    row = st.lists(st.floats(0, 9, width=16), min_size=len(budgets), max_size=len(budgets))
    table = data.draw(st.lists(row, min_size=layers, max_size=layers))
    total = data.draw(st.integers(layers * budgets[0], layers * budgets[-1]))
    chosen = allocate(torch.tensor(table), budgets, total)
    assert len(chosen) == layers and {*chosen} <= {*budgets} and sum(chosen) <= total

    def cost(each: Any) -> float:
        return sum(row[budgets.index(budget)] for row, budget in zip(table, each, strict=True))

    every = [each for each in product(budgets, repeat=layers) if sum(each) <= total]
    least = min(cost(each) for each in every)
    assert cost(chosen) == pytest.approx(least, abs=1e-9)


def saved(name: str = "xshare", mine: str = "mine", **parameters: Any) -> Budgets:
    """A table by which layer 1 needs its experts and the others do not."""
    policy = build_policy(name, per_layer="calibrated", **parameters)
    divergence = torch.tensor([[0.2, 0.1, 0.0], [9.0, 3.0, 0.0], [0.2, 0.1, 0.0]], dtype=torch.float64)
    made = Budgets(
        policy=budget_digest(policy), fingerprint=mine, budgets=(2, 4, 8), divergence=divergence, provenance={}
    )
    made.save(made.file())
    return made


def test_every_layer_has_its_own_and_their_mean_is_what_is_asked_for() -> None:
    saved()
    for mean, expected in ((2, [2, 2, 2]), (3, [2, 4, 2]), (4, [2, 8, 2]), (6, [4, 8, 4]), (8, [8, 8, 8])):
        policy = build_policy("xshare", budget=mean, per_layer="calibrated")
        bound = with_budgets(policy, SHAPE)
        assert isinstance(bound, PerLayer)
        assert [part.budget for part in bound.policies] == expected  # type: ignore[attr-defined]
        assert bound.label == f"xshare(per_layer=calibrated, budget={mean})"
        assert not any(part.per_layer for part in bound.policies)


def test_what_is_refused() -> None:
    policy = build_policy("xshare", budget=4, per_layer="calibrated")
    with pytest.raises(ValueError, match=r"^xshare: per_layer=calibrated: calibrations/ has no table .* \(hash"):
        with_budgets(policy, SHAPE)
    saved(mine="another one")
    with pytest.raises(ValueError, match="made for another model .its routers hash to another one, this"):
        with_budgets(policy, SHAPE)
    with pytest.raises(ValueError, match="has no table for this policy with these parameters"):
        with_budgets(build_policy("xshare", budget=4, warm_up=0, per_layer="calibrated"), SHAPE)
    saved("top_k")
    with pytest.raises(ValueError, match="top_k: k=1: least budget that was measured: 2"):
        with_budgets(build_policy("top_k", k=1, per_layer="calibrated"), SHAPE)
    with pytest.raises(ValueError, match="not together with lists of one value a layer"):
        with_budgets(build_policy("xshare", budget=[2, 4, 4], per_layer="calibrated"), SHAPE)
    for name in ("lynx", "lexi", "vanilla"):
        with pytest.raises(ValueError, match=f"^{name}: per_layer=calibrated: only where a whole number sets"):
            build_policy(name, per_layer="calibrated")
    with pytest.raises(ValueError, match="not together with weights=affine"):
        build_policy("xshare", per_layer="calibrated", weights="affine")
    with pytest.raises(ValueError, match="per_layer=best: must be one of calibrated"):
        build_policy("xshare", per_layer="best")
    saved().file().write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        with_budgets(policy, SHAPE)


def test_of_several_corpora_none_is_chosen() -> None:
    made = saved()
    other = replace(made, provenance={"data_sha256": "0" * 64, "data": "web.jsonl"})
    other.save(other.file())
    with pytest.raises(ValueError, match=r"^xshare: per_layer=calibrated: .*web.jsonl.* which of them is meant\?"):
        with_budgets(build_policy("xshare", budget=4, per_layer="calibrated"), SHAPE)


def test_unbound_it_does_not_run() -> None:
    from tests.routing.test_golden import RULE, STEP, vanilla

    with pytest.raises(RuntimeError, match="`bind` the policy to a model first"):
        build_policy("top_k", per_layer="calibrated")(vanilla(), STEP, RULE)


def test_many_budgets_are_spread_over_the_range() -> None:
    assert measured_budgets(build_policy("xshare"), SHAPE) == tuple(range(2, 9))
    many = measured_budgets(build_policy("xshare"), ModelShape(num_experts=128, top_k=8))
    assert (len(many), many[0], many[-1]) == (17, 8, 128)


@torch.inference_mode()
def test_the_table_is_the_divergence_of_one_layer_alone() -> None:
    model: Any = tiny_model("qwen3_moe")
    routers = find_routers(model)
    policy = build_policy("lynx_v1_latency", per_layer="calibrated")
    table = measure_budgets(model, routers, policy, [(IDS, REAL)], fingerprint(routers), {}, lambda done, total: None)
    assert table.divergence.shape == (2, len(table.budgets)) and (table.divergence[:, -1] == 0).all()
    vanilla = model(input_ids=IDS).logits.double().log_softmax(-1)
    for layer, budget in ((0, table.budgets[0]), (1, table.budgets[1])):
        rows = rows_of_positions(0, REAL)
        del rows["shared"]
        attachment = Attachment(routers, build_policy("lynx_v1_latency", keep_experts=budget), layers=str(layer))
        attachment.rows = Rows(**rows)
        with attachment:
            changed = model(input_ids=IDS).logits.double().log_softmax(-1)
        wanted = (vanilla.exp() * (vanilla - changed)).sum(-1)[REAL].mean().item()
        found = table.divergence[layer, table.budgets.index(budget)].item()
        assert wanted > 0 and found == pytest.approx(wanted, rel=1e-3, abs=1e-7)
    table.save(table.file())
    bound = bind(build_policy("lynx_v1_latency", keep_experts=3, per_layer="calibrated"), routers)
    assert sum(part.keep_experts for part in bound.policies) <= 6  # type: ignore[attr-defined]


def test_the_command_makes_what_a_cell_takes_and_a_cell_is_of_its_own_models_table(capsys: Any) -> None:
    by_layer = {"name": "xshare", "budget": 3, "per_layer": "calibrated"}
    with pytest.raises(ValueError, match="^policy xshare: per_layer=calibrated: calibrations/ has no table"):
        cell(by_layer)
    assert calibrate("policy=xshare", "policy.budget=2", "policy.per_layer=calibrated") == 0
    said = capsys.readouterr().out
    assert "2 layers at 3 budgets each; use it with policy.per_layer=calibrated batch_size=4" in said
    first = cell(by_layer)
    assert cell(by_layer | {"per_layer": None}).cell_id != first.cell_id
    assert len(engine().bind(first.policy).policies) == 2  # type: ignore[arg-type, attr-defined]
    (own,) = Path("calibrations").glob("*.budgets.safetensors")
    other = "model.seed=5"
    assert calibrate("policy=xshare", "policy.budget=2", "policy.per_layer=calibrated", other) == 0
    assert len([*Path("calibrations").iterdir()]) == 2
    assert cell(by_layer).cell_id == first.cell_id, "another model's table lies beside it"
    assert cell(by_layer, model_config(seed=5)).cell_id != first.cell_id
    assert calibrate("policy=xshare", "policy.budget=2", "policy.per_layer=calibrated", "seed=1") == 0
    with pytest.raises(ValueError, match="^policy xshare: per_layer=calibrated: .* which of them is meant"):
        cell(by_layer)
    own.unlink()
    assert cell(by_layer).cell_id != first.cell_id


def test_a_cost_that_is_no_number_is_refused() -> None:
    """NaN is below nothing and above nothing: it would have given every layer the smallest budget."""
    with pytest.raises(ValueError, match="not finite"):
        allocate(torch.tensor([[float("nan"), 0.2], [0.5, 0.1]]), (1, 2), 3)


def test_a_table_that_was_changed_is_refused() -> None:
    """One bit of a divergence would be another allocation, and say nothing of itself."""
    made = saved()
    whole = made.file().read_bytes()
    made.file().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="do not hash to what it says of them; make it again"):
        Budgets.load(made.file())
