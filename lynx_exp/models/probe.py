"""Ask a router: run random hidden states through it and note what it answers.

Two thirds of the hidden states lie to both sides of where the router's choice of experts changes. There even a small
bias, or a group that is seldom closed, shows.

T token rows, E experts, K top-k, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lynx_exp.models.odd_families.forms import PARENT, ChoosesExperts, Form, Output, form_of
from lynx_exp.wording import first_line

_ROWS = 64
_HALVINGS = 12
_LOGITS = 2.0
"""Standard deviation of the logits that the hidden states aim at."""
_FAILURES = (AttributeError, IndexError, RuntimeError, StopIteration, TypeError, ValueError)


Run = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Hidden states `[T, H]` -> logits `[T, E]`, weights `[T, K]`, experts `[T, K]`."""


class UnknownRouter(ValueError):
    """A router of no known form, or that scores by no known rule."""


@dataclass(frozen=True, kw_only=True)
class RouterOutputs:
    """What a router made of random hidden states."""

    form: Form
    logits_TE: Tensor
    weights_TK: Tensor
    experts_TK: Tensor
    coarse: bool
    """The router rounds to half precision: near-ties fall either way."""

    @property
    def tolerance(self) -> float:
        """Relative to the largest number of a row."""
        return 2e-2 if self.coarse else 1e-5


class Probe(NamedTuple):
    """A router, and what to ask it."""

    form: Form
    run: Run
    rows: Tensor
    """`[T, H]`."""


@torch.no_grad()
def probe(module: nn.Module, parent: nn.Module) -> Probe:
    """How to ask the router `module` of the block `parent`; UnknownRouter if it is of no known form."""
    hidden = _hidden(module)
    form, run = _runner(module, parent, hidden)
    return Probe(form, run, torch.cat([hidden, *_edges(run, hidden)]))


@torch.no_grad()
def run_probe(module: nn.Module, parent: nn.Module) -> RouterOutputs:
    """What the router `module` of the block `parent` answers; UnknownRouter if it is not to be understood."""
    try:
        form, run, rows = probe(module, parent)
        logits, weights, experts = run(rows)
    except UnknownRouter:
        raise
    except _FAILURES as error:
        raise UnknownRouter(f"not a router of a known form: {first_line(error)}") from error
    half = rows.dtype in (torch.bfloat16, torch.float16)
    return RouterOutputs(
        form=form,
        logits_TE=logits.float(),
        weights_TK=weights.float(),
        experts_TK=experts,
        coarse=half and weights.to(rows.dtype).float().equal(weights.float()),
    )


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers in and below `module`, by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _hidden(module: nn.Module) -> Tensor:
    """`[T, H]` random rows that give logits of a few units."""
    matrix = next(parameter for parameter in module.parameters() if parameter.dim() == 2)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_ROWS, matrix.shape[-1], generator=generator)
    rows *= _LOGITS / matrix.float().std().clamp_min(1e-3).item() / matrix.shape[-1] ** 0.5
    return rows.to(matrix.device, matrix.dtype)


def _runner(module: nn.Module, parent: nn.Module, hidden: Tensor) -> tuple[Form, Run]:
    more = _further_arguments(module, parent)

    def flat(rows: Tensor) -> Tensor | Output:
        return module(rows, **more)

    def batched(rows: Tensor) -> Tensor | Output:
        return module(rows[None], **more)

    try:
        call, out = flat, flat(hidden)
    except _FAILURES as error:  # some routers insist on a batch dimension
        try:
            call, out = batched, batched(hidden)
        except _FAILURES:
            raise error from None
    if isinstance(out, Tensor) and hasattr(parent, "route_tokens_to_experts"):
        return PARENT, lambda rows: _by_parent(parent, cast(Tensor, call(rows)))
    form = form_of(module, out)
    if form is None:
        raise UnknownRouter("not a router of a known form: it does not return (logits, weights, experts)")
    return form, lambda rows: form.read(cast(Output, call(rows)))


def _by_parent(parent: nn.Module, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights, experts = cast(ChoosesExperts, parent).route_tokens_to_experts(logits)
    return logits, weights, experts


def _further_arguments(module: nn.Module, parent: nn.Module) -> dict[str, Tensor]:
    """What the router's forward takes beside hidden states: tensors of the same name, as its block passes them."""
    known = {name.rpartition(".")[2]: tensor for owner in (parent, module) for name, tensor in tensors(owner)}
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and parameter.name not in known:
            raise UnknownRouter(f"not a router of a known form: its forward needs `{parameter.name}`")
    return {parameter.name: known[parameter.name] for parameter in parameters if parameter.name in known}


def _edges(run: Run, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows close to either side of where the choice of experts changes, between each row of `hidden` and the next."""

    def chosen(rows: Tensor) -> Tensor:
        return run(rows)[2].sort(-1).values

    one, other = hidden, hidden.roll(1, 0)
    here = chosen(one)
    for _ in range(_HALVINGS):
        middle = (one + other) / 2
        same_T1 = (chosen(middle) == here).all(-1, keepdim=True)
        one, other = torch.where(same_T1, middle, one), torch.where(same_T1, other, middle)
    return one, other
