"""Turn a policy's knob until a given number of experts is active: the axis on which policies can be compared fairly.

The number is the mean over layers and full decode steps of the distinct experts that a lane runs, as a cell reports it,
teacher-forced on given continuations: one forward pass for each value tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from lynx_exp.engine.results import LaneResult
from lynx_exp.routing import Knob, ModelShape, Policy

_TRIES = 14
_CLOSE = 0.01
"""Relative: closer than this is not sought."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The setting found."""

    policy: Policy
    parameter: str
    value: float
    active: float
    """Mean active experts with it, on the calibration continuations."""
    target: float

    def summary(self) -> dict[str, float | str]:
        return {"parameter": self.parameter, "value": self.value, "active": self.active, "target": self.target}


def match_active(policy: Policy, target: float, shape: ModelShape, active: Callable[[Policy | None], float]) -> Matched:
    """`policy` with its knob set so that `active(policy)` is nearest to `target`; bisection, since the knob is
    monotone.

    `active(None)` is vanilla's; a target below 1 is that share of it. A target beyond the knob's range gets its end,
    and `Matched.active` says so. Raises ValueError for a policy without a knob.
    """
    knob = policy.knob
    if knob is None:
        raise ValueError(
            f"{policy.name}: match_active={target}: this policy has no parameter that sets how many experts run"
        )
    if target < 1:
        target = max(target * active(None), float(shape.top_k))
    if not shape.top_k <= target <= shape.num_experts:
        raise ValueError(f"match_active={target:g}: must lie in {shape.top_k}..{shape.num_experts}, this model's K..E")
    low, high = knob.bounds(shape)
    seen: dict[float, float] = {}

    def measured(value: float) -> float:
        if value not in seen:
            seen[value] = active(_set(policy, knob, value))
        return seen[value]

    fewest, most = (high, low) if knob.falling else (low, high)
    if measured(fewest) < target < measured(most):
        below, over = fewest, most
        for _ in range(_TRIES):
            middle = _middle(knob, below, over)
            if middle in (below, over):
                break
            if measured(middle) <= target:
                below = middle
            else:
                over = middle
            if abs(seen[middle] - target) <= _CLOSE * target:
                break
    value = min(seen, key=lambda tried: (abs(seen[tried] - target), tried))
    return Matched(
        policy=_set(policy, knob, value), parameter=knob.parameter, value=value, active=seen[value], target=target
    )


def mean_active(lanes: Iterable[LaneResult], batch_size: int) -> float:
    """Mean over layers and the decode steps with `batch_size` live rows; over all steps if there is none such."""
    full, every = [], []
    for lane in lanes:
        for live, layers in zip(lane.live_rows, lane.active_experts, strict=True):
            every += layers
            full += layers if live == batch_size else []
    counted = full or every
    if not counted:
        raise ValueError("match_active: the calibration continuations hold no decode step")
    return sum(counted) / len(counted)


def _middle(knob: Knob, a: float, b: float) -> float:
    if knob.whole:
        return float((int(a) + int(b)) // 2)
    if knob.logarithmic:
        return (a * b) ** 0.5
    return (a + b) / 2


def _set(policy: Policy, knob: Knob, value: float) -> Policy:
    turned: dict[str, Any] = {knob.parameter: int(value) if knob.whole else float(value)}
    return replace(policy, **turned)
