"""What an experts module does between its two products, found out by asking it.

transformers' modules name it in many ways (an activation, a method of their own, limits under several names). All are
elementwise in the gate and up values; so each is run on a grid of numbers and compared with the forms that the kernels
know. What equals none of them is not served: nothing is guessed from a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lynx_exp.models.module_types import Experts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda x: x,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * 2**0.5))),
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
}
"""In the order of `activations.activate`. silu takes a factor inside its sigmoid; other names of transformers (swish,
gelu_new, gelu_fast, quick_gelu ...) are one of these."""

_QUICK = 1.702
_REACH = 40.0
"""The grid's ends, beyond all limits that are not the module's own."""


class Form(NamedTuple):
    """Between the products: (up + shift) * act(gate), or act(up) without a gate."""

    gated: int
    """0: no gate; 1: gate and up side by side; 2: in turns."""
    act: int
    """Place in ACTIVATIONS."""
    alpha: float = 1.0
    """silu: inside its sigmoid."""
    clamp: int = 0
    """0: not; 1: the gate from above before its activation, up on both sides; 2: the gate after it."""
    limit: float = 0.0
    """Read only with a clamp."""
    shift: float = 0.0

    def __call__(self, values: Tensor) -> Tensor:
        """The same in torch: `[..., 2 * I]`, or `[..., I]` without a gate."""
        if not self.gated:
            return self._act(values)
        gate, up = values.chunk(2, -1) if self.gated == 1 else (values[..., ::2], values[..., 1::2])
        if self.clamp == 1:
            gate = gate.clamp(max=self.limit)
        gate = self._act(gate)
        if self.clamp == 2:
            gate = gate.clamp(max=self.limit)
        if self.clamp:
            up = up.clamp(-self.limit, self.limit)
        return (up + self.shift) * gate

    def _act(self, x: Tensor) -> Tensor:
        if self.act == 0:
            return x * torch.sigmoid(self.alpha * x)
        return list(ACTIVATIONS.values())[self.act](x)


def form_of(experts: Experts) -> Form | None:
    """Of an experts module of transformers; None if it is none that the kernels know."""
    limits, alphas = _numbers(experts, "limit"), _numbers(experts, "alpha")
    reach = max([_REACH, *(2 * limit for limit in limits if limit < 1e4)])
    values = _grid(reach) if experts.has_gate else _points(reach)[:, None]
    try:
        with torch.no_grad():
            wanted = experts._apply_gate(values) if experts.has_gate else experts.act_fn(values)
    except (RuntimeError, TypeError, AttributeError):  # weights of its own elsewhere, another signature
        return None
    for form in _forms(experts.has_gate, limits, alphas):
        found = form(values)
        if found.shape == wanted.shape and torch.allclose(found, wanted.float(), rtol=1e-5, atol=1e-6):
            return form
    return None


def _forms(gated: bool, limits: list[float], alphas: list[float]) -> Iterator[Form]:
    acts = [(act, 1.0) for act in range(len(ACTIVATIONS))] + [(0, alpha) for alpha in (_QUICK, *alphas)]
    for act, alpha in acts:
        if not gated:
            yield Form(0, act, alpha)
            continue
        for layout in (1, 2):
            for shift in (0.0, 1.0):
                yield Form(layout, act, alpha, shift=shift)
                for limit in limits:
                    for clamp in (1, 2):
                        yield Form(layout, act, alpha, clamp, limit, shift)


def _numbers(experts: Experts, kind: str) -> list[float]:
    """Its attributes that hold a number and are called so: limit, swiglu_limit ..."""
    found = {name: value for name, value in vars(experts).items() if name == kind or name.endswith(f"_{kind}")}
    return [float(value) for value in found.values() if isinstance(value, int | float) and value > 0]


def _points(reach: float) -> Tensor:
    """Dense around 0, where activations differ by little, and thin out to `reach`."""
    return torch.cat([torch.linspace(-6, 6, 97), torch.linspace(-reach, reach, 33)])


def _grid(reach: float) -> Tensor:
    """`[points, 4]`: every point as a gate beside ups of both signs, inside and outside any limit, in both layouts."""
    points, draw = _points(reach), torch.Generator().manual_seed(0)
    others = [points[torch.randperm(len(points), generator=draw)] for _ in range(3)]
    return torch.stack([points, *others], 1)
