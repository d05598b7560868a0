"""Cells and studies are found where they are, and where links to them are, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_exp.store.find import find_cells


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of one cell, on another disk than `results`."""
    folder = tmp_path / "scratch" / "big"
    for file in ("sweeps/x.json", "cell/cell.json"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text("{}")
    (tmp_path / "results").mkdir()
    return folder


def test_a_study_behind_a_link_is_found(study: Path, tmp_path: Path) -> None:
    """A run writes through the link: what reads finds the same."""
    link = tmp_path / "results" / "big"
    link.symlink_to(study)
    assert find_cells(tmp_path / "results") == ([link / "cell"], [link])


def test_no_study_is_found_twice(study: Path, tmp_path: Path) -> None:
    """By two links, by one to a study that is met on the way, or by one that leads back up."""
    (study / "up").symlink_to(study.parent)
    (study / "self").symlink_to(study)
    (tmp_path / "results" / "a").symlink_to(study)
    (tmp_path / "results" / "b").symlink_to(study)
    assert find_cells(tmp_path / "results") == ([tmp_path / "results/a/cell"], [tmp_path / "results/a"])
    assert find_cells(tmp_path) == ([study / "cell"], [study])
    assert find_cells(study) == ([study / "cell"], [study])


def test_a_link_to_no_study_is_not_followed(study: Path, tmp_path: Path) -> None:
    (tmp_path / "results" / "all").symlink_to(study.parent)
    (tmp_path / "results" / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no cell"):
        find_cells(tmp_path / "results")
