"""Turn a policy's knob until a given number of experts is active: the axis on which policies can be compared fairly.

The number is the mean over layers and scored tokens of the distinct experts that the lane runs in the token's step, as
a cell reports it, teacher-forced on given continuations: one forward pass for each value tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.routing import Knob, ModelShape, Policy
from lynx_exp.routing.calibration import for_batches

_TRIES = 14
_CLOSE = 0.01
"""Relative: closer than this is not sought."""
_GRID = 9
"""Values of a knob that are tried where its ends do not enclose the target."""
_FAR = 0.1
"""Relative: where one knob comes no nearer than this, what a policy has beside it is turned, too."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The setting found."""

    policy: Policy
    parameter: str
    value: float
    active: float
    """Mean active experts with it, on the calibration continuations."""
    target: float
    also: Mapping[str, object] = field(default_factory=dict)
    """What else was set: values of `Policy.secondary_parameters` other than those asked for."""

    def summary(self) -> dict[str, object]:
        found = {"parameter": self.parameter, "value": self.value, "active": self.active, "target": self.target}
        return found | ({"also": dict(self.also)} if self.also else {})


def match_active(policy: Policy, target: float, shape: ModelShape, active: Callable[[Policy | None], float]) -> Matched:
    """`policy` with its knob set so that `active(policy)` is nearest to `target`, by bisection.

    Where the ends of the knob do not enclose the target, values between them may: on a router with random weights few
    knobs are monotone. So a grid is tried, and where that comes no nearer than a tenth, a grid for each value of what
    the policy has beside its knob (`Policy.secondary_parameters`).

    `active(None)` is vanilla's; a target below 1 is that share of it. A target out of reach gets the nearest, and
    `Matched.active` says so. Raises ValueError for a policy without a knob.
    """
    knob = policy.knob
    if knob is None:
        raise ValueError(
            f"{policy.name}: match_active={target}: this policy has no parameter that sets how many experts run"
        )
    # a share of vanilla's count; but fewer than a token's own K cannot run
    if target < 1:
        target = max(target * active(None), float(shape.top_k))
    if not shape.top_k <= target <= shape.num_experts:
        raise ValueError(f"match_active={target:g}: must lie in {shape.top_k}..{shape.num_experts}, this model's K..E")
    best: tuple[float, float, Policy, float] | None = None
    for number, candidate in enumerate([policy, *_beside(policy)]):
        value, count = _search(candidate, knob, target, shape, active)
        # of two that come equally near, the one with fewer changed parameters
        found = (abs(count - target), number, _set(candidate, knob, value), value)
        if best is None or found[:2] < best[:2]:
            best, nearest = found, count
        # near enough: other parameters are left as they are
        if best[0] <= _FAR * target:
            break
    assert best is not None
    turned = best[2]
    also = {
        name: getattr(turned, name)
        for name in policy.secondary_parameters
        if getattr(turned, name) != getattr(policy, name)
    }
    return Matched(policy=turned, parameter=knob.parameter, value=best[3], active=nearest, target=target, also=also)


def _search(
    policy: Policy, knob: Knob, target: float, shape: ModelShape, active: Callable[[Policy | None], float]
) -> tuple[float, float]:
    """(value of the knob, active experts with it) nearest to the target."""
    low, high = knob.bounds(shape)
    # a measurement is a whole run of the model: no value is measured twice
    seen: dict[float, float] = {}

    def measured(value: float) -> float:
        if value not in seen:
            seen[value] = active(_set(policy, knob, value))
        return seen[value]

    fewest, most = (high, low) if knob.falling else (low, high)
    pair = (fewest, most) if measured(fewest) < target < measured(most) else None
    if pair is None and min(abs(count - target) for count in seen.values()) > _CLOSE * target:
        grid = _grid(knob, low, high)
        pairs = [
            (one, other) if measured(one) <= measured(other) else (other, one)
            for one, other in zip(grid, grid[1:], strict=False)
        ]
        around = [each for each in pairs if measured(each[0]) < target < measured(each[1])]
        # of several crossings the one whose ends differ least: there the knob turns gently
        pair = min(around, key=lambda each: measured(each[1]) - measured(each[0]), default=None)
    if pair is not None:
        below, over = pair
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
    # the nearest of all that were measured, which need not be the last
    value = min(seen, key=lambda tried: (abs(seen[tried] - target), tried))
    return value, seen[value]


def _beside(policy: Policy) -> list[Policy]:
    """The policy with other values of what it has beside its knob."""
    return [
        _with(policy, {name: value})
        for name, values in policy.secondary_parameters.items()
        for value in values
        if value != getattr(policy, name)
    ]


def _grid(knob: Knob, low: float, high: float) -> list[float]:
    steps = [step / (_GRID - 1) for step in range(_GRID)]
    if knob.logarithmic:
        return [low, *(low * (high / low) ** step for step in steps[1:-1]), high]
    values = [low + (high - low) * step for step in steps]
    return list(dict.fromkeys(float(round(value)) for value in values)) if knob.integer else values


def mean_active(lanes: Iterable[LaneResult]) -> float:
    """Mean over layers and scored tokens of the experts that ran in the step that made the token: of all decode steps,
    weighted by their rows that are no fillers."""
    experts = tokens = 0
    for lane in lanes:
        for rows, layers in zip(lane.scored_rows or lane.live_rows, lane.active_experts, strict=True):
            experts += rows * sum(layers)
            tokens += rows * len(layers)
    if not tokens:
        raise ValueError("match_active: the calibration continuations hold no decode step")
    return experts / tokens


def _middle(knob: Knob, a: float, b: float) -> float:
    if knob.integer:
        return float((int(a) + int(b)) // 2)
    if knob.logarithmic:
        return (a * b) ** 0.5
    return (a + b) / 2


def _set(policy: Policy, knob: Knob, value: float) -> Policy:
    return _with(policy, {knob.parameter: int(value) if knob.integer else float(value)})


def _with(policy: Policy, values: Mapping[str, Any]) -> Policy:
    """The policy with other values of some parameters."""
    return for_batches(replace(policy, **values), policy.of_batch_size)
