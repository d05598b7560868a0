"""A kernel that cannot be compiled or launched leaves its policy to torch, and says so; asked for, it is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lynx_exp.routing import PerLayer, RouterRule, build_policy
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.backends.triton.kernels import fallback, selection
from tests.routing.kernel_cases import big_case
from tests.routing.laws import same

pytest.importorskip("triton")

NOTE = "top_p selects in torch (8 experts, top-2): its kernel does not run here: RuntimeError: ptxas failed"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kernels that are asked for on the CPU as on a GPU, and are all broken; the policies that tried one."""
    tried: list[str] = []

    def broken(policy: Any, *_: Any) -> None:
        tried.append(policy.name)
        raise RuntimeError("ptxas\n  failed")

    monkeypatch.setattr(kernels, "chosen", lambda _: True)
    monkeypatch.setattr(selection, "select", broken)
    monkeypatch.setattr(fallback, "_failed", {})
    yield tried


def test_torch_takes_over_and_the_kernel_is_not_tried_again(calls: list[str]) -> None:
    case, policy = big_case(8, 8, 2, 1, torch.float32, rule=RouterRule()), build_policy("top_p")
    expected = policy.route(case.routing, case.step, case.rule)
    for _ in range(3):
        assert same(case.run(policy), expected)
    assert calls == ["top_p"]
    assert kernels.fallback_notes(policy) == [NOTE]
    assert kernels.fallback_notes(PerLayer(policies=(build_policy("top_k"), policy))) == [NOTE]
    assert kernels.fallback_notes(build_policy("min_p")) == []
    wide = big_case(8, 16, 2, 1, torch.float32, rule=RouterRule())
    wide.run(policy)
    assert calls == ["top_p"] * 2, "another shape is another kernel"
    assert len(kernels.fallback_notes(policy)) == 2


def test_a_kernel_that_was_asked_for_is_an_error(calls: list[str]) -> None:
    case, policy = big_case(8, 8, 2, 1, torch.float32, rule=RouterRule()), build_policy("top_p")
    case.run(policy)
    for _ in range(2):
        with (
            kernels.kernel("triton"),
            pytest.raises(
                RuntimeError, match="^kernel=triton: top_p: its kernel does not run here: RuntimeError: ptxas failed$"
            ),
        ):
            case.run(policy)


def test_no_memory_is_no_fault_of_a_kernel(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(selection, "select", full)
    case, policy = big_case(8, 8, 2, 1, torch.float32, rule=RouterRule()), build_policy("top_p")
    with pytest.raises(torch.OutOfMemoryError):
        case.run(policy)
    assert kernels.fallback_notes(policy) == []
