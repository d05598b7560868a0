"""Models over two processes (gloo, CPU) against one: the same tokens, the same experts, on every rank.

Without accelerate, which transformers needs for it, the runs are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.models import BUNDLED, find_routers, from_first, load_weights
from lynx_exp.models.placement import OLDEST_EP, _version, placement, refuse_offloading
from lynx_exp.models.rank_agreement import Agreement, group_of
from lynx_exp.models.tiny import EXPERTS, tiny_config, tiny_model
from lynx_exp.routing import Routing

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("two_ranks.py")
LOOPBACK = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
"""Port 0: a free one."""
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *LOOPBACK]


def run(*command: str | Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment = inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]


def saved(family: str, folder: Path) -> Path:
    tiny_model(family).save_pretrained(folder)
    for file in BUNDLED["lynx_tiny"].glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate (the extra `multi`)")
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_two_ranks_do_what_one_process_does(family, tmp_path):
    folder = saved(family, tmp_path / family)
    run(SCRIPT, folder, "none", tmp_path / "none.json")
    (alone,) = json.loads((tmp_path / "none.json").read_text())
    experts, hidden, inner = alone["shard"]
    shards = {"tp": [experts, hidden, inner // 2]}
    if _version() >= OLDEST_EP:
        shards["ep"] = [experts // 2, hidden, inner]
    for parallel, shard in shards.items():
        run(*TORCHRUN, SCRIPT, folder, parallel, tmp_path / f"{parallel}.json")
        ranks = json.loads((tmp_path / f"{parallel}.json").read_text())
        assert len(ranks) == 2 and ranks[0] == ranks[1]
        assert ranks[0].pop("shard") == shard, "the experts are not spread"
        assert ranks[0].pop("refused").startswith("layer 0: rank 1 chose other experts")
        for policy, found in ranks[0].items():
            assert found == alone[policy], f"{parallel}, {policy}"
    few = [sum(map(sum, lane)) for lane in alone["lynx"]["active"]]
    assert few < [sum(map(sum, lane)) for lane in alone["vanilla"]["active"]]
    given = {expert for layer in alone["vanilla"]["routed"] for row in layer for expert in row}
    assert given == set(range(EXPERTS)), "the ids that the blocks are given are global"


@pytest.fixture
def two_ranks(monkeypatch):
    pytest.importorskip("accelerate", exc_type=ImportError)
    monkeypatch.setenv("WORLD_SIZE", "2")


def asked(family="mixtral", *, device=CPU, device_map=None, parallel=None):
    return placement(tiny_config(family), device=device, device_map=device_map, parallel=parallel)


def test_one_device_needs_nothing_of_transformers():
    assert asked() == {}
    routers = find_routers(tiny_model("mixtral"))
    assert group_of(routers) is None and from_first("mine", routers) == "mine"
    agreement = Agreement(routers)
    assert not agreement.required
    agreement.check(0, torch.zeros(1, 1), torch.ones(1, dtype=torch.bool))


def test_plans_are_transformers_own(two_ranks):
    tensor = asked(parallel="tp")["distributed_config"]
    assert (tensor.tp_size, tensor.tp_plan) == (2, "auto")
    assert asked(device_map="auto") == {"device_map": "auto"}
    assert asked(device_map={"": 0}) == {"device_map": {"": 0}}


@pytest.mark.skipif(_version() < OLDEST_EP, reason="refused before transformers 5.20, as the next test says")
def test_the_plan_of_whole_experts_is_transformers_own(two_ranks):
    tensor, expert = (asked(parallel=name)["distributed_config"] for name in ("tp", "ep"))
    assert tensor.ep_size == 1
    assert (expert.tp_size, expert.tp_plan, expert.ep_size) == (2, "auto", 2)


def test_what_cannot_be_spread_is_said_before_weights_load(two_ranks, monkeypatch):
    with pytest.raises(ValueError, match="no tp plan for the experts of dbrx; use device_map=auto"):
        asked("dbrx", parallel="tp")  # its plan has the head alone: every rank would hold all the experts
    with pytest.raises(ValueError, match="give one of the two"):
        asked(parallel="tp", device_map="auto")
    with pytest.raises(ValueError, match="parallel=pp: must be one of tp, ep"):
        asked(parallel="pp")
    with pytest.raises(ValueError, match="devices here, not device=meta"):
        asked(parallel="tp", device=torch.device("meta"))
    with monkeypatch.context() as older:
        older.setattr("lynx_exp.models.placement._version", lambda: (5, 19))
        assert asked(parallel="tp")
        with pytest.raises(ValueError, match="needs transformers 5.20 or newer; use parallel=tp"):
            asked(parallel="ep")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match="start it with `torchrun --nproc-per-node GPUS"):
        asked(parallel="ep")


def test_accelerate_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("lynx_exp.models.placement.is_accelerate_available", lambda: False)
    with pytest.raises(ValueError, match=r"device_map=auto: needs accelerate; pip install 'lynx-exp\[multi\]'"):
        asked(device_map="auto")


def test_a_device_map_loads_the_same_model(tmp_path):
    pytest.importorskip("accelerate", exc_type=ImportError)
    folder = saved("mixtral", tmp_path / "mixtral")
    for place in ("auto", {"": "cpu"}):
        loaded, _ = load_weights(str(folder), dtype=torch.float32, device=CPU, device_map=place)
        assert torch.equal(loaded.lm_head.weight, tiny_model("mixtral").lm_head.weight)
        assert find_routers(loaded)[0].home is None


def test_a_model_that_does_not_fit_is_refused():
    refuse_offloading("auto", {"a": 0, "b": 1})
    refuse_offloading("auto", {"": "cpu"})
    with pytest.raises(ValueError, match="does not fit on the devices, cpu and disk would hold the rest"):
        refuse_offloading("auto", {"a": 0, "b": "cpu", "c": "disk"})


def test_policies_decide_where_the_rows_are():
    """A router elsewhere: its routing comes home and the decision goes back. `meta` stands for the other device."""
    model = tiny_model("deepseek_v3")
    (router, *_) = find_routers(model)
    away = replace(router, home=torch.device("meta"), ordered=True)
    assert away.rule.bias.device.type == "meta" and router.rule.bias.device.type == "cpu"
    seen: list[Routing] = []
    wanted = Routing(logits=torch.zeros(2, EXPERTS), experts=torch.tensor([[1], [2]]), weights=torch.ones(2, 1))

    def decide(routing):
        seen.append(routing)
        return wanted

    remove = away.intercept(decide)
    _, weights, experts = router.module(torch.randn(2, 64))
    remove()
    assert all(part.device.type == "meta" for part in (seen[0].logits, seen[0].experts, seen[0].weights))
    assert torch.equal(experts, wanted.experts) and torch.equal(weights, wanted.weights)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_plans_with_experts_are_told_from_those_without(family):
    config = AutoConfig.for_model(family)
    for plan in (config.base_model_tp_plan, config.base_model_ep_plan):
        assert any("expert" in module for module in plan)


def test_config_refuses_what_cannot_be():
    hub = {"kind": "hub", "id": "a/b"}
    for given, said in {
        ("parallel", "pp"): "model.parallel=pp: must be one of tp, ep",
        ("device_map", 1.5): "model.device_map=1.5: must be null, auto, a device, or a map",
    }.items():
        with pytest.raises(ValueError, match=said):
            ModelConfig(**hub, **dict([given]))
    with pytest.raises(ValueError, match="model.parallel=tp: not with model.device_map"):
        ModelConfig(**hub, parallel="tp", device_map="auto")
    with pytest.raises(ValueError, match="model.device_map=auto: random weights are made, not loaded"):
        ModelConfig(kind="random", id="mixtral", device_map="auto")
    rest = {"policy": {"name": "vanilla"}, "task": TaskConfig(name="t", subtasks=["t"]), "tracker": TrackerConfig()}
    with pytest.raises(ValueError, match="device=cuda:1: model.parallel takes one device a rank"):
        Config(model=ModelConfig(**hub, parallel="tp"), device="cuda:1", **rest)
    with pytest.raises(ValueError, match="device=cpu: model.device_map says where the layers go"):
        Config(model=ModelConfig(**hub, device_map={"model": 0, "lm_head": 1}), device="cpu", **rest)
