"""The union of grids that `hydra.sweeper.cells` describes."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lynx_exp.launch.plugin import grid, job_grids

PARSER = OverridesParser.create()
CELLS = ["policy=vanilla,no_drop", "policy=lynx policy.alpha=1.0,3.0 policy.beta=2"]


def test_a_plain_grid():
    assert grid(["a=1,2", "b=3,4"], PARSER) == [["a=1", "b=3"], ["a=1", "b=4"], ["a=2", "b=3"], ["a=2", "b=4"]]
    assert grid([], PARSER) == [[]]
    assert grid(["a=range(1,3)", "+study=demo", "~b"], PARSER) == [
        ["a=1", "+study=demo", "~b"],
        ["a=2", "+study=demo", "~b"],
    ]


def test_params_cross_a_union_of_cells():
    jobs = job_grids(["batch_size=4,16"], CELLS, ["limit=8"], PARSER)
    assert len(jobs) == 2 * (2 + 2)
    assert jobs[0] == ["limit=8", "batch_size=4", "policy=vanilla"]
    assert jobs[-1] == ["limit=8", "batch_size=16", "policy=lynx", "policy.alpha=3.0", "policy.beta=2"]


def test_an_argument_replaces_params_and_the_part_of_cells_below_it():
    jobs = job_grids(["batch_size=4,16"], CELLS, ["policy=top_k", "batch_size=1"], PARSER)
    assert jobs == [["policy=top_k", "batch_size=1"]]
    assert len(job_grids([], CELLS, ["policy.alpha=2.0"], PARSER)) == 3


def test_endless_sweeps_are_refused():
    with pytest.raises(ValueError, match="not a finite sweep"):
        grid(["a=interval(0,1)"], PARSER)
