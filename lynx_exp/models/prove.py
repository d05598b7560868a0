"""Prove how a router scores: of the rules that could be, the simplest that predicts all its answers is the router's.

Not read from the configuration, and not from the name: a rule must give exactly the experts and the weights that the
router gave for the hidden states of `probe`.

T token rows, E experts, K top-k.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from lynx_exp.models.odd_families.forms import Form
from lynx_exp.models.probe import RouterOutputs, UnknownRouter, run_probe, tensors
from lynx_exp.routing import RouterRule

_SCORES: tuple[Literal["softmax", "sigmoid", "sqrtsoftplus"], ...] = ("softmax", "sigmoid", "sqrtsoftplus")
_PLACES: tuple[Literal["scores", "logits"], ...] = ("scores", "logits")
_GROUPS = ("num_group", "n_group", "num_expert_group")
_TOP_GROUPS = ("topk_group",)


@dataclass(frozen=True)
class Live:
    """A tensor of one number for each expert, as the model has it now."""

    owner: nn.Module
    name: str

    def __call__(self) -> Tensor:
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor.detach().flatten()


class LiveRule:
    """A router's rule whose tensors are the model's own: it follows them when the model moves or loads others."""

    def __init__(self, rule: RouterRule, bias: Live | None, expert_scale: Live | None) -> None:
        named = {"bias": bias, "expert_scale": expert_scale}
        self._rule, self._sources = rule, {field: source for field, source in named.items() if source is not None}
        self._seen: list[tuple[int, torch.device, torch.dtype]] = []

    def __call__(self) -> RouterRule:
        if not self._sources:
            return self._rule
        now = {field: source() for field, source in self._sources.items()}
        where = [(tensor.data_ptr(), tensor.device, tensor.dtype) for tensor in now.values()]
        if where != self._seen:
            rule = self._rule
            bias, scale = now.get("bias", rule.bias), now.get("expert_scale", rule.expert_scale)
            self._rule, self._seen = replace(rule, bias=bias, expert_scale=scale), where
        return self._rule


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How a router works."""

    form: Form
    rule: LiveRule
    num_experts: int
    top_k: int
    ordered: bool
    """Whether the experts of a token always come best first."""


@torch.no_grad()
def prove(module: nn.Module, parent: nn.Module) -> Proof:
    """How the router `module` of the block `parent` works; UnknownRouter says why it cannot be known."""
    answers = run_probe(module, parent)
    vectors = list(_vectors(module, parent, answers.logits_TE.shape[-1]))
    groups, top_groups = _attribute(module, parent, _GROUPS), _attribute(module, parent, _TOP_GROUPS)
    stated = [value for owner in (module, parent) for value in vars(owner).values() if isinstance(value, float)]
    rule, ordered = prove_outputs(answers, vectors=vectors, groups=groups, top_groups=top_groups, stated=stated)
    return Proof(
        form=answers.form,
        rule=rule,
        num_experts=answers.logits_TE.shape[-1],
        top_k=answers.experts_TK.shape[-1],
        ordered=ordered and not _may_be_unordered(module, parent),
    )


def prove_outputs(
    answers: RouterOutputs, *, vectors: Sequence[Live], groups: int, top_groups: int, stated: Sequence[float]
) -> tuple[LiveRule, bool]:
    """(the simplest rule that predicts the answers, whether the experts of all their rows come best first).

    `vectors`: what may be a bias or a scale; `groups`, `top_groups`: what may limit a token, 1: nothing; `stated`:
    numbers that the weights may be scaled by. UnknownRouter if there is none.
    """
    for rule, bias in _candidates(vectors, groups, top_groups, answers.logits_TE.shape[-1]):
        choice_TE = rule.choice(answers.logits_TE, rule.scores(answers.logits_TE))
        if not _chooses(choice_TE, answers):
            continue
        for renormalize, scale in [(True, None), (False, None), *product([True], vectors)]:
            factor = _factor(replace(rule, renormalize=renormalize), scale, answers)
            if factor is not None:
                scaling = _nearest_stated(factor, stated, answers)
                wanted_TK = choice_TE.gather(-1, answers.experts_TK)
                live = LiveRule(replace(rule, renormalize=renormalize, scaling=scaling), bias, scale)
                return live, bool((wanted_TK.diff(dim=-1) <= 0).all())
    raise UnknownRouter(
        "scores experts by none of the known rules (softmax, sigmoid or square root of softplus; bias; groups; "
        "renormalised or not); selecting experts for it would change more than the selection"
    )


def _vectors(module: nn.Module, parent: nn.Module, num_experts: int) -> Iterator[Live]:
    """What holds a number for each expert, the numbers not all alike: it may be a bias or a scale."""
    seen = set()
    for owner in (module, parent):
        for name, tensor in tensors(owner):
            if tensor.numel() == num_experts == max(tensor.shape, default=0) and id(tensor) not in seen:
                seen.add(id(tensor))
                if tensor.float().max() > tensor.float().min():
                    path, _, last = name.rpartition(".")
                    yield Live(owner.get_submodule(path), last)


def _candidates(
    vectors: Sequence[Live], groups: int, top_groups: int, num_experts: int
) -> Iterator[tuple[RouterRule, Live | None]]:
    """Rules that differ in what they choose, simplest first."""
    rules = [RouterRule()]
    if 0 < top_groups < groups and num_experts % groups == 0:
        rules.append(RouterRule(groups=groups, top_groups=top_groups, group_score="max"))
        if num_experts >= 2 * groups:
            rules.append(RouterRule(groups=groups, top_groups=top_groups, group_score="top2"))
    biases: list[tuple[Live | None, Literal["scores", "logits"]]] = [(None, "scores"), *product(vectors, _PLACES)]
    for (bias, place), rule, score in product(biases, rules, _SCORES):
        yield replace(rule, score=score, bias=None if bias is None else bias(), bias_on=place), bias


def _attribute(module: nn.Module, parent: nn.Module, names: tuple[str, ...]) -> int:
    """The first of the names that the router or its block has as a number; 1 if there is none."""
    values = (getattr(owner, name, None) for owner in (module, parent) for name in names)
    return next((value for value in values if isinstance(value, int)), 1)


def _chooses(choice_TE: Tensor, answers: RouterOutputs) -> bool:
    """Whether the router takes the K largest of `choice_TE`, up to ties."""
    taken_TK = choice_TE.gather(-1, answers.experts_TK).sort(-1, descending=True).values
    best_TK = choice_TE.topk(taken_TK.shape[-1], -1).values
    tie_T1 = answers.tolerance * best_TK.abs().amax(-1, keepdim=True)
    distinct = answers.experts_TK.sort(-1).values.diff(dim=-1).ne(0).all()
    return bool((best_TK - taken_TK <= tie_T1).all() & distinct)


def _factor(rule: RouterRule, scale: Live | None, answers: RouterOutputs) -> float | None:
    """By how much the router's weights exceed the rule's; None if that differs from weight to weight."""
    predicted_TK = rule.scores(answers.logits_TE).gather(-1, answers.experts_TK)
    if rule.renormalize:
        predicted_TK = predicted_TK / predicted_TK.sum(-1, keepdim=True)
    if scale is not None:
        predicted_TK = predicted_TK * scale().float()[answers.experts_TK]
    factor = (answers.weights_TK.sum() / predicted_TK.sum()).item()
    allowed_T1 = answers.tolerance * abs(factor) * predicted_TK.abs().amax(-1, keepdim=True)
    fits = factor > 0 and bool(((predicted_TK * factor - answers.weights_TK).abs() <= allowed_T1).all())
    return factor if fits else None


def _nearest_stated(factor: float, stated: Sequence[float], answers: RouterOutputs) -> float:
    """The measured factor as the router states it: 1, or one of `stated`."""
    best = min([1.0, *stated], key=lambda value: abs(value - factor))
    return best if abs(best - factor) <= answers.tolerance * factor else float(f"{factor:.6g}")


def _may_be_unordered(module: nn.Module, parent: nn.Module) -> bool:
    """Whether the router's code waives the order of its top-k: a probe cannot tell, it depends on the device and T."""
    return any(_waives_order(kind) for owner in (module, parent) for kind in type(owner).__mro__)


@cache
def _waives_order(kind: type) -> bool:
    if kind is object or kind.__module__.startswith("torch."):
        return False
    try:
        return "sorted=False" in inspect.getsource(kind)
    except (OSError, TypeError):
        return True
