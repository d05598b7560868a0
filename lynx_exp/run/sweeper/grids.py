"""From what a sweep crosses and joins to the overrides of its jobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice, product

from hydra.core.override_parser.overrides_parser import OverridesParser

from lynx_exp.run.sweeper.model_numbers import Shape, filled, has_model_numbers

MAX_CELLS = 100_000
"""Of one multirun, unless `hydra.sweeper.max_cells` says otherwise."""


def grid(words: Sequence[str], parser: OverridesParser, most: int = MAX_CELLS) -> list[list[str]]:
    """All combinations of the overrides `words`; of two on one key the later counts. ValueError for endless sweeps, and
    for more than `most`, before they are made."""
    choices: dict[str, list[str]] = {}
    for override in parser.parse_overrides(list(words)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}" if "~" not in key else key]
        elif override.is_discrete_sweep():
            values = islice(override.sweep_string_iterator(), most + 1)
            choices[key] = list(dict.fromkeys(f"{key}={value}" for value in values))
        else:
            raise ValueError(f"{override.input_line}: not a finite sweep; give a list (1,2,3) or range(1,4)")
    check_count(math.prod(len(values) for values in choices.values()), most)
    return [list(job) for job in product(*choices.values())]


def check_count(count: int, most: int) -> None:
    """ValueError for more cells than a sweep may have."""
    if count > most:
        raise ValueError(
            f"hydra.sweeper.max_cells={most}: this sweep has {count} cells or more; give fewer values, or raise it"
        )


def job_grids(
    params: Sequence[str],
    cells: Sequence[str],
    arguments: Sequence[str],
    parser: OverridesParser,
    controls: Sequence[str] = (),
    shape_of: Callable[[list[str]], Shape] | None = None,
    most: int = MAX_CELLS,
) -> list[list[str]]:
    """The overrides of every job: `params` (crossed) x the union of `cells` (each a crossed grid); `arguments` win.
    ValueError if they are more than `most`.

    `shape_of` gives the model of a job without its cell, for cells that hold numbers of the model (`model_numbers`).

    An argument on a key takes that key, and everything below it, out of every cell; a control takes its keys out of
    everything else, and is run once for what is left.
    """
    typed = {override.get_key_element().lstrip("+~") for override in parser.parse_overrides(list(arguments))}

    def overridden(word: str) -> bool:
        key = word.partition("=")[0].lstrip("+~")
        return any(key == name or key.startswith(f"{name}.") for name in typed)

    # cells may become equal once what the user typed is taken out of them
    unions = list(dict.fromkeys(tuple(word for word in cell.split() if not overridden(word)) for cell in cells)) or [()]
    shared = [*arguments, *(word for word in params if not overridden(word))]

    # most jobs share a cell's grid: it is parsed once
    known: dict[tuple[str, ...], list[list[str]]] = {}

    def own_grid(base: list[str], cell: tuple[str, ...]) -> list[list[str]]:
        if shape_of is not None and has_model_numbers(cell):
            shape = shape_of(base)
            cell = tuple(filled(word, shape) for word in cell)
        if cell not in known:
            known[cell] = grid(cell, parser, most)
        return known[cell]

    jobs: list[list[str]] = []
    for base in grid(shared, parser, most):
        for cell in unions:
            jobs += [[*base, *own] for own in own_grid(base, cell)]
            # inside the loop, before a mistyped range has filled the memory
            check_count(len(jobs), most)
    for control in controls:
        keys = [word.partition("=")[0] for word in control.split()]

        def replaced(word: str, keys: Sequence[str] = keys) -> bool:
            key = word.partition("=")[0].lstrip("+~")
            return any(key == name or key.startswith(f"{name}.") for name in keys)

        # a control ignores its own keys, so jobs that differ only in these are one
        left = [tuple(word for word in job if not replaced(word)) for job in jobs]
        jobs += [[*job, *control.split()] for job in dict.fromkeys(left)]
    return jobs
