"""The union of grids that `hydra.sweeper.cells` describes."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lynx_exp.routing import ModelShape
from lynx_exp.run.sweeper.grids import grid, job_grids
from lynx_exp.run.sweeper.model_numbers import filled

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


SHAPE = ModelShape(num_experts=10, top_k=3, num_layers=6)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("policy.rank=range(0,<K>)", "policy.rank=range(0,3)"),
        ("policy.ranks=range(1,<K+1>)", "policy.ranks=range(1,4)"),
        ("policy.keep_experts=<K>,<E/4>,<3E/4>,<E>", "policy.keep_experts=3,3,8,10"),
        ("layers='0:<L/4>,<L/2>:'", "layers='0:2,3:'"),
        ("policy.threshold=<0.1V>,<V>", "policy.threshold=0.009,0.09"),
        ("policy.k=<K/9>", "policy.k=1"),
        ("limit=8", "limit=8"),
    ],
)
def test_numbers_of_the_model(word, text):
    assert filled(word, SHAPE) == text


@pytest.mark.parametrize("word", ["policy.k=<Q>", "policy.k=<K", "policy.k=<K*2>"])
def test_what_is_no_number_of_the_model(word):
    with pytest.raises(ValueError, match="in angle brackets stand numbers of the model"):
        filled(word, SHAPE)


def test_each_model_fills_its_own_cells():
    shapes = {"small": SHAPE, "large": ModelShape(num_experts=64, top_k=8, num_layers=4)}

    def shape_of(overrides):
        return shapes[next(word.partition("=")[2] for word in overrides if word.startswith("model="))]

    jobs = job_grids(["model=small,large"], ["policy=top_k policy.k=<K>,<E/4>"], [], PARSER, [], shape_of)
    assert [job[-1] for job in jobs] == ["policy.k=3", "policy.k=8", "policy.k=16"], "3 and 3 are one"
