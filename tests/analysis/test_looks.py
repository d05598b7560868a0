"""Colours and markers mean the same in every figure of a study, and no two policies share a colour by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest
from fake_study import POLICIES, write_cell
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import looks, pareto, style
from analysis.frontiers import Saving
from analysis.study import study


def frame(*series: str) -> pd.DataFrame:
    return pd.DataFrame({"series": series, "policy": [name.partition("(")[0] for name in series]})


def test_a_policy_of_ones_own_has_a_colour_of_its_own() -> None:
    found = looks.looks(frame("vanilla", "lynx(alpha=3)", "strongest(count=4)", "strongest(count=8)", "weakest"))
    colors = {name: look.color for name, look in found.items()}
    assert colors["strongest(count=4)"] == colors["strongest(count=8)"]
    assert len({colors[name] for name in ("vanilla", "lynx(alpha=3)", "strongest(count=4)", "weakest")}) == 4
    assert found["strongest(count=4)"].fill != found["strongest(count=8)"].fill


def test_as_many_as_there_are_still_have_a_colour() -> None:
    assert len(looks.looks(frame(*(f"own{number:02}" for number in range(40))))) == 40


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Figure, dict[str, looks.Look]]]:
    """Figure name -> (figure, looks it was drawn with), of a study of two tasks whose policies come in other orders."""
    tmp_path = tmp_path_factory.mktemp("looks")
    for task in ("mini_gsm8k", "mini_wmt16"):
        for policy in POLICIES if task == "mini_gsm8k" else POLICIES[::-1]:
            write_cell(tmp_path / "study", policy=policy, task=task)
    found: dict[str, tuple[Figure, dict[str, looks.Look]]] = {}
    used: list[dict[str, looks.Look]] = []
    panel = pareto._panel

    def watched(axes: Axes, part: pd.DataFrame, saving: Saving, look: dict[str, looks.Look], *more: Any, **named: Any):
        used.append(look)
        panel(axes, part, saving, look, *more, **named)

    def kept(fig: Figure, folder: Path, name: str, *more: Any) -> list[Path]:
        found[name] = (fig, used[-1])
        return []

    with pytest.MonkeyPatch.context() as monkeypatch, matplotlib.rc_context(style.RC):
        monkeypatch.setattr(pareto, "_panel", watched)
        monkeypatch.setattr(style, "save", kept)
        pareto.draw(study(tmp_path / "study"), tmp_path, "")
    assert len(found) >= 2 and any(name.endswith("_tasks") for name in found)
    return found


def test_means_and_tasks_are_drawn_alike(drawn) -> None:
    first, *others = (look for _, look in drawn.values())
    assert all(look == first for look in others)


def test_the_label_of_the_vertical_axis_is_on_the_figure(drawn) -> None:
    for fig, _ in drawn.values():
        fig.canvas.draw()
        box = fig._supylabel.get_window_extent()
        assert box.y0 >= 0 and box.y1 <= fig.bbox.height
