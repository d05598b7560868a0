"""What comes to the same policy is one cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lynx_exp.run.planned_cell import Cell
from tests.prepare.test_calibrate import cell


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of(name: str, **parameters: Any) -> Cell:
    return cell({"name": name, **parameters})


def test_reference_over_k_is_original() -> None:
    """The model runs two of four experts."""
    original = of("top_k", k=1, weights="original")
    for k2 in ({}, {"k2": None}, {"k2": 2}):
        same = of("top_k", k=1, weights="reference", **k2)
        assert same.ids == original.ids and same.folder == original.folder
        assert same.config.policy_label == original.config.policy_label == "top_k(k=1, weights=original)"
        assert same.policy == original.policy
        assert same.info()["policy_params"] == original.info()["policy_params"]
    others = [of("top_k", k=1), of("top_k", k=1, weights="mass"), of("top_k", k=1, weights="reference", k2=3)]
    assert len({each.cell_id for each in [original, *others]}) == 4
    assert len({each.pair_id for each in [original, *others]}) == 1


def test_the_default_weights_are_named_or_not() -> None:
    assert of("top_k", k=1).ids == of("top_k", k=1, weights="renormalize", k2=None).ids


def test_where_match_active_starts_makes_no_other_cell() -> None:
    started = [of("lynx", alpha=alpha, beta=2, bins="ceil", match_active=0.5) for alpha in (0.7, 3.0, 9.0)]
    assert len({each.cell_id for each in started}) == 1
    assert {each.config.policy_label for each in started} == {"lynx(beta=2, match_active=0.5)"}
    assert len({of("lynx", alpha=1.0, beta=beta, match_active=0.5).cell_id for beta in (1, 2)}) == 2
    assert len({of("lynx", alpha=alpha, beta=2).cell_id for alpha in (0.7, 3.0)}) == 2
