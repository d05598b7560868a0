"""What some policies must know of a model before they run: measured once by `lynx-prepare calibrate`, kept in one file.

L layers with a router, E experts, K top-k.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from lynx_exp.routing.policy import Policy
from lynx_exp.routing.types import ModelShape

AUTO = "auto"
FILE_NAME = "lynx_calibration.st"
"""In a model's folder, where `calibration=auto` looks first. Not named as weights are: vLLM loads all of those."""
SIMILARITIES = ("cosine", "frobenius", "cka")
_FORMAT = 1
_KEY = "lynx_exp_calibration"
"""The file's only metadata key: safetensors writes several in random order."""


class NotMeasured(ValueError):
    """What `lynx-prepare calibrate` has not made yet."""

    def of_model(self, words: str) -> NotMeasured:
        """The same, its command with `words` for the model, and so whole."""
        return NotMeasured(str(self).replace(COMMAND, f"{COMMAND} {words}"))


COMMAND = "`lynx-prepare calibrate"
"""As messages begin what is to be typed."""


def for_batches(policy: Policy, batch_size: int | None) -> Policy:
    """The policy for batches of this size (None: not known): it takes the alignment (weights=affine) or the budgets
    (per_layer=calibrated) that were measured in such. Itself, where it takes nothing that is measured for a policy."""
    parts = getattr(policy, "policies", (policy,))
    if not any(part.weights == "affine" or part.per_layer is not None for part in parts):
        return policy
    known = copy(policy)
    object.__setattr__(known, "of_batch_size", batch_size)
    return known


def typed(policy: Policy) -> str:
    """The policy as it is typed: its name, the parameters that are not at their defaults, and the size of its batches,
    if somebody has said it. Lists of one value a layer, which are many policies, by their name alone. Without the
    budget, where it is one of many that are measured."""
    left_out = policy.knob.parameter if policy.knob is not None and policy.per_layer is not None else None
    given = [
        f"policy.{each.name}={_word(getattr(policy, each.name))}"
        for each in (() if hasattr(policy, "policies") else fields(policy))
        if each.init and each.name != left_out and getattr(policy, each.name) != each.default
    ]
    given += [] if policy.of_batch_size is None else [f"batch_size={policy.of_batch_size}"]
    return " ".join([f"policy={policy.name}", *given])


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Facts of one model, measured on sample tokens."""

    fingerprint: str
    """Of the routers' weights: says which model this belongs to."""
    similarity: dict[str, Tensor] = field(repr=False)
    """By metric, `[L, E, E]` in 0..1: how alike two experts' outputs are for the same input, 1 on the diagonal."""
    ratio: Tensor = field(repr=False)
    """`[L, K]`: median over tokens of the weight of each rank over that of the first; 1 for the first."""
    divergence: Tensor = field(repr=False)
    """`[L, K]`: mean Frobenius distance of the layer's output with its first 1..K experts from that with all K; 0 for
    the last."""
    saliency: Tensor | None = field(default=None, repr=False)
    """`[L, E]`: mean over the tokens routed to an expert of weight times norm of its output. None in older files."""
    largest: Tensor | None = field(default=None, repr=False)
    """`[L, E]`: the largest magnitude in an expert's output for a token routed to it. None in older files."""
    provenance: dict[str, str]
    """What it was measured on: model, data, tokens, seed, versions."""

    def save(self, path: Path) -> None:
        """Written in one step; the same facts give the same bytes."""
        tensors = {f"similarity.{metric}": matrix.contiguous() for metric, matrix in self.similarity.items()}
        tensors |= {"ratio": self.ratio.contiguous(), "divergence": self.divergence.contiguous()}
        later = {"saliency": self.saliency, "largest": self.largest}
        tensors |= {name: tensor.contiguous() for name, tensor in later.items() if tensor is not None}
        about = {"format": _FORMAT, "fingerprint": self.fingerprint, "provenance": self.provenance}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(serialize(tensors, metadata={_KEY: json.dumps(about, sort_keys=True)}))
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """ValueError, in one line, if there is no such file or it is something else."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise NotMeasured(f"calibration={path}: no such file; `lynx-prepare calibrate` makes one")
        return _load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load(path: Path, _changed: int) -> Calibration:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise ValueError(
            f"calibration={path}: cannot be read ({error}); make it again with `lynx-prepare calibrate`"
        ) from error
    if about.get("format") != _FORMAT:
        raise ValueError(f"calibration={path}: not a file of `lynx-prepare calibrate` of this version; make it again")
    return Calibration(
        fingerprint=about["fingerprint"],
        similarity={metric: tensors[f"similarity.{metric}"] for metric in SIMILARITIES},
        ratio=tensors["ratio"],
        divergence=tensors["divergence"],
        saliency=tensors.get("saliency"),
        largest=tensors.get("largest"),
        provenance=about["provenance"],
    )


def load_calibration(who: str, calibration: str, shape: ModelShape) -> Calibration:
    """The calibration at `calibration` (AUTO: the model's own). ValueError, which begins with `who` asks, if there is
    none, or it is of another model."""
    if calibration == AUTO and shape.calibration is None:
        raise NotMeasured(
            f"{who}: calibration=auto: this model has none; run `lynx-prepare calibrate` for it, or give "
            "calibration=FILE"
        )
    try:
        facts = Calibration.load(str(shape.calibration) if calibration == AUTO else calibration)
    except ValueError as error:
        raise type(error)(f"{who}: {error}") from error
    layers, experts = facts.similarity[SIMILARITIES[0]].shape[:2]
    here = (shape.num_layers or layers, shape.num_experts, shape.top_k)
    if (layers, experts, facts.ratio.shape[1]) != here:
        raise ValueError(
            f"{who}: calibration={calibration}: made for a model of {layers} layers, {experts} experts, "
            f"top-{facts.ratio.shape[1]}; this one has {here[0]}, {here[1]}, top-{here[2]}"
        )
    if shape.fingerprint is not None and shape.fingerprint() != facts.fingerprint:
        raise ValueError(
            f"{who}: calibration={calibration}: made for another model (its routers hash to "
            f"{facts.fingerprint[:12]}, this model's to {shape.fingerprint()[:12]}); run `lynx-prepare calibrate` "
            "for this one"
        )
    return facts


@dataclass(frozen=True, kw_only=True)
class Calibrated(Policy):
    """A policy that needs the model's calibration; `bind` loads it and checks that it is this model's."""

    calibration: str = AUTO
    """File of `lynx-prepare calibrate`; auto: the model's own, in its folder or under calibrations/."""

    hidden = ("calibration",)

    _facts: Calibration | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def facts(self) -> Calibration:
        if self._facts is None:
            raise RuntimeError(f"{self.name}: `bind` the policy to a model first")
        return self._facts

    def calibrated(self, facts: Calibration) -> Self:
        """The policy with these facts, whatever model they are of."""
        bound = replace(self)
        object.__setattr__(bound, "_facts", facts)
        return bound

    def bind(self, shape: ModelShape) -> Policy:
        self.accept(shape)
        if self._facts is not None:
            return self
        return self.calibrated(load_calibration(self.name, self.calibration, shape))

    def table(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A tensor of the calibration on `device`, moved there once."""
        kept: dict[tuple[int, torch.device], Tensor] = self.__dict__.setdefault("_moved", {})
        key = (id(tensor), device)
        if key not in kept:
            kept[key] = tensor.to(device)
        return kept[key]
