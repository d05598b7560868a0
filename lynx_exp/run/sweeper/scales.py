"""A study at the scale that fits its model: the file as it stands (laptop), or with what it says of the paper's tasks
and sizes.

A file of `sweeps/` says below `hydra.sweeper.scales.paper` what changes: `params` by name, `cells` as a whole, and
`instruct`, where the paper measured the model that is tuned to instructions. What all studies have in common at a scale
is in `conf/scale`. A study that says nothing of a scale is the same at all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from lynx_exp.config import ModelConfig

AUTO, LAPTOP, PAPER = "auto", "laptop", "paper"
NAMES = (AUTO, LAPTOP, PAPER)
ROOM = 2048
"""Positions that a model must have for the paper's tasks: five worked examples of GSM8K and an answer."""
_SEEDS = ("plan_seeds", "plan_seed")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a sweep crosses and joins."""

    params: Mapping[str, str]
    cells: Sequence[str]
    plan_seeds: int
    arguments: Sequence[str]
    """What was typed, without the scale: a job is of its scale already."""
    notes: tuple[str, ...] = ()
    """What was chosen that nobody typed, for people."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a study's file says of one scale."""

    params: Mapping[str, Any] = field(default_factory=dict)
    cells: Sequence[str] = ()
    instruct: bool = False
    """Whether the preset that is tuned to instructions stands for its base model."""

    @classmethod
    def of(cls, name: str, node: Mapping[str, Any] | None) -> Change:
        """ValueError for what is no part of it."""
        where, node = f"hydra.sweeper.scales.{name}", node or {}
        for key in node:
            if key not in ("params", "cells", "instruct"):
                raise ValueError(f"{where}.{key}: must be params, cells or instruct")
        made = cls(**node)
        lists = isinstance(made.cells, Sequence) and not isinstance(made.cells, str)
        if not lists or not isinstance(made.params, Mapping) or not isinstance(made.instruct, bool):
            raise ValueError(f"{where}: params must map fields to values, cells list grids, instruct be true or false")
        return made


def at_scale(
    study: Study,
    asked: str,
    scales: Mapping[str, Mapping[str, Any] | None],
    model: ModelConfig | None,
    *,
    common: Callable[[str], Mapping[str, Any]],
    context: Callable[[], int | None],
) -> Study:
    """The study at the scale `asked`, or that fits its model: with what `scales` say of it and, where that is silent,
    `common`, in place of its own words. What was typed wins over all of them.

    `model`: None where there are no `scales`. `context`: the positions of the model, asked for only where they decide;
    None: not known. ValueError for a scale that there is not, or that the study says nothing of.
    """
    study = _without_scale(study)
    for name in (asked, *scales):
        if name not in NAMES or (name == AUTO and name in scales):
            raise ValueError(f"scale={name}: must be one of {', '.join(NAMES)}")
    if not scales:
        if asked == PAPER:
            raise ValueError(
                "scale=paper: only a study has one whose file says what it is then (hydra.sweeper.scales.paper): "
                "those of +paper=NAME, and some of +study=NAME"
            )
        return study
    assert model is not None
    name = scale_of(model, context) if asked == AUTO else asked
    if name not in scales:
        return study
    change, notes = Change.of(name, scales[name]), []
    if asked == AUTO:
        notes.append(f"scale={name}, as fits {model.id}; scale={LAPTOP} takes the studies as their files stand")
    arguments, typed = list(study.arguments), {_key(word) for word in study.arguments}
    if change.instruct and model.instruct is not None and "model.id" not in typed:
        arguments = [f"model={model.instruct}" if _key(word) == "model" else word for word in arguments]
        notes.append(
            f"{_named(study)}: model={model.instruct} in place of {model.id}, as the paper measured there; "
            "model.instruct=null keeps it"
        )
    own = {name: str(value) for name, value in {**common(name), **change.params}.items()}
    seeds = own.pop(_SEEDS[0], None)
    return Study(
        params={**study.params, **own},
        cells=change.cells or study.cells,
        plan_seeds=study.plan_seeds if seeds is None or typed & set(_SEEDS) else int(seeds),
        arguments=arguments,
        notes=tuple(notes),
    )


def scale_of(model: ModelConfig, context: Callable[[], int | None]) -> str:
    """The scale that fits a model: paper for one of a folder or the hub that has room for the paper's tasks."""
    if model.kind != "hub":
        return LAPTOP
    positions = context()
    return PAPER if positions is None or positions >= ROOM else LAPTOP


def by_model(arguments: Sequence[str], parser: OverridesParser) -> list[list[str]]:
    """The arguments for each of the presets, or ids, that they sweep over; as they are where they name one, or none."""
    for at, word in enumerate(arguments):
        if _key(word) in ("model", "model.id"):
            (override,) = parser.parse_overrides([word])
            if override.is_discrete_sweep():
                models = dict.fromkeys(override.sweep_string_iterator())
                each = [[*arguments[:at], f"{_key(word)}={model}", *arguments[at + 1 :]] for model in models]
                return [one for words in each for one in by_model(words, parser)]
    return [list(arguments)]


def _without_scale(study: Study) -> Study:
    kept = [word for word in study.arguments if _key(word) != "scale"]
    return Study(params=study.params, cells=study.cells, plan_seeds=study.plan_seeds, arguments=kept)


def _named(study: Study) -> str:
    """The file that it is from."""
    return next((word.lstrip("+") for word in study.arguments if word.startswith("+")), "this study")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")
