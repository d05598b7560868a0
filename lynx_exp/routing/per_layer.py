"""Different parameters, or a different policy, in each layer."""

from __future__ import annotations

from dataclasses import dataclass

from lynx_exp.routing.policy import Policy
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class PerLayer(Policy):
    """One policy for each layer with a router, first layer first."""

    policies: tuple[Policy, ...]
    made_of: Policy | None = None
    """The policy that this is a form of, if it is: its name and label are shown."""

    @property
    def name(self) -> str:
        return (self.made_of or self.policies[0]).name

    @property
    def label(self) -> str:
        return self.made_of.label if self.made_of else f"{self.name} by layer"

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return self.policies[step.layer](routing, step, rule)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return self.policies[step.layer].route(routing, step, rule)

    def check(self, shape: ModelShape) -> None:
        if shape.num_layers is not None and shape.num_layers != len(self.policies):
            raise ValueError(
                f"{self.name}: parameters for {len(self.policies)} layers; this model has {shape.num_layers} "
                "layers with a router"
            )
        for policy in self.policies:
            policy.accept(shape)

    def bind(self, shape: ModelShape) -> Policy:
        self.check(shape)
        return PerLayer(policies=tuple(policy.bind(shape) for policy in self.policies), made_of=self.made_of)


def layer_range(text: str, num_layers: int) -> frozenset[int]:
    """The layers that `layers=TEXT` names: numbers and Python ranges, separated by commas, as `1:`, `:-2`, `0,4:8`.

    Raises ValueError for anything else, and for a number that the model does not have.
    """
    chosen: set[int] = set()
    for part in str(text).split(","):
        try:
            ends = [int(end) if end.strip() else None for end in part.split(":")]
        except ValueError:
            ends = []
        if not 1 <= len(ends) <= 2 or ends == [None]:
            raise ValueError(f"layers={text}: must be numbers and ranges such as 1: or :-2 or 0,4:8")
        if len(ends) == 2:
            chosen |= set(range(num_layers)[slice(*ends)])
            continue
        (number,) = ends
        assert number is not None
        if not -num_layers <= number < num_layers:
            raise ValueError(f"layers={text}: {number}: this model has layers 0..{num_layers - 1} with a router")
        chosen.add(number % num_layers)
    if not chosen:
        raise ValueError(f"layers={text}: names none of the {num_layers} layers with a router")
    return frozenset(chosen)
