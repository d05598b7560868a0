"""Routers whose rule runs in one launch: proved equal to their own forward, or left as they are, with the reason.

Under Triton's interpreter, as in `test_expert_kernels`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import lynx_exp.models.probe as probe
import lynx_exp.routing.backends.triton.kernels.route as launch
from lynx_exp import Engine
from lynx_exp.models import Attachment, find_routers, fuse
from lynx_exp.models.fused_router import fused_of
from lynx_exp.models.prove import LiveRule
from lynx_exp.models.tiny import tiny_model
from lynx_exp.routing import RouterRule, build_policy
from lynx_exp.routing.backends.triton import kernels
from tests.models.verdicts import logits, under

pytest.importorskip("triton")

FEW = build_policy("lynx", alpha=0.7, beta=1)


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few rows: the interpreter takes some 10 ms for each."""
    monkeypatch.setattr(probe, "_ROWS", 3)
    with kernels.kernel("triton"):
        yield


def fused(family: str, **changes: Any) -> tuple[Any, Any, Any]:
    """(the model's logits before, the model, its routers), fused."""
    model = tiny_model(family, **changes)
    with kernels.kernel("torch"):
        before, routers = logits(model), find_routers(model)
    assert fuse(routers) is None
    assert all(fused_of(router.module) for router in routers)
    return before, model, routers


FAMILIES = ["qwen3_moe", "gpt_oss", "granitemoe", "deepseek_v3", "ernie4_5_moe", "hunyuan_v1_moe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_gives_what_it_gave(family: str) -> None:
    before, model, routers = fused(family)
    assert torch.allclose(logits(model), before, rtol=0, atol=1e-5 * float(before.abs().max()))
    with kernels.kernel("torch"):
        assert torch.equal(logits(model), before), "kernel=torch is the model's own"


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_policies_decide_as_behind_the_models_own(family: str) -> None:
    _, model, routers = fused(family)
    found, calls = under(FEW, model, routers)
    with kernels.kernel("torch"):
        expected, theirs = under(FEW, model, routers)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    for call, own in zip(calls, theirs, strict=True):
        assert torch.equal(call.after.experts.sort(-1).values, own.after.experts.sort(-1).values)


def test_a_routing_is_kept_only_for_a_policy_that_listens() -> None:
    _, model, routers = fused("mixtral")
    stands_in = fused_of(routers[0].module)
    assert stands_in is not None
    logits(model)
    assert stands_in.take() is None
    with Attachment(routers, None):
        assert stands_in.listeners == 1
        logits(model)
    assert stands_in.listeners == 0 and stands_in.take() is None


def test_once_fused_it_stays_so_and_is_proved_once() -> None:
    _, model, routers = fused("mixtral")
    before = [fused_of(router.module) for router in routers]
    assert fuse(find_routers(model)) is None
    assert [fused_of(router.module) for router in routers] == before


def test_gradients_go_through_the_models_own() -> None:
    _, model, routers = fused("mixtral")
    hidden = torch.randn(3, 64, requires_grad=True)
    routers[0].module(hidden)[1].sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize(
    ("family", "dtype", "reason"),
    [
        ("dbrx", torch.float32, r"\(DbrxRouter\): it does not hand over logits, weights and experts"),
        ("llama4_text", torch.float32, r"\(Llama4Router\): it does not hand over logits, weights and experts"),
        ("lfm2_moe", torch.bfloat16, r"\(Lfm2MoeTopKRouter\): it ranks experts by numbers that it has rounded before"),
    ],
)
def test_what_is_not_proved_keeps_its_own(family: str, dtype: torch.dtype, reason: str) -> None:
    routers = find_routers(tiny_model(family).to(dtype))
    note = fuse(routers)
    assert note is not None and re.search(f"^routers run as the model's own {reason}$", note)
    assert not any("forward" in vars(router.module) for router in routers)


def test_weights_that_are_not_the_rules_are_found() -> None:
    """As if the rule had been read wrongly: proved is the launch, not the description."""
    routers = find_routers(tiny_model("mixtral"))
    last = replace(routers[-1], live_rule=LiveRule(RouterRule(scaling=1.001), None, None))
    note = fuse([*routers[:-1], last])
    assert note is not None and note.endswith("its weights are not the rule's, rounded once")
    assert not any("forward" in vars(router.module) for router in routers), "all of them, or none"


def test_a_choice_that_is_not_the_rules_is_found() -> None:
    routers = find_routers(tiny_model("mixtral"))
    other = RouterRule(bias=torch.arange(8) * 0.1, bias_on="logits")
    note = fuse([replace(routers[0], live_rule=LiveRule(other, None, None))])
    assert note is not None and note.endswith("it ranks experts by numbers that it has rounded before")


def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError("ptxas\n failed")


def test_a_kernel_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, it is an error; else the model's own runs, with a note."""
    model = tiny_model("mixtral")
    routers, before = find_routers(model), logits(model)
    monkeypatch.setattr(launch, "_launch", broken)
    reason = r"\(MixtralTopKRouter\): their fused kernel does not run here: RuntimeError: ptxas failed"
    with pytest.raises(ValueError, match=f"^kernel=triton: routers {reason}$"):
        fuse(routers)
    with kernels.kernel("auto"):
        monkeypatch.setattr(kernels, "chosen", lambda _: True)
        note = Engine(model).router_note
    assert note is not None and re.search(f"^routers run as the model's own {reason}$", note)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_a_cpu_has_the_models_own(kernel: kernels.Kernel) -> None:
    model = tiny_model("mixtral")
    with kernels.kernel(kernel):
        engine = Engine(model)
    assert engine.router_note is None
    assert not any("forward" in vars(router.module) for router in engine.routers)
