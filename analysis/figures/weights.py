"""What a policy gains or loses by other weights for the experts that run (`policy.weights`), all else equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analysis.figures import looks, style
from analysis.study import Study
from analysis.weight_comparison import OWN, TUNED, weighings

NAME = "weights"
_SHOWN = (OWN, "original", TUNED, "mass", "affine")
_LINE_IN = 0.235
"""Height of one policy's line."""


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One line per policy: divergence from vanilla over that with its own weights, and difference in accuracy, means
    over the subtasks; one figure per batch size. The CSV has every k2."""
    found = weighings(study)
    if found.empty:
        return style.absent(f"{NAME}{suffix}", "with several policy.weights and fidelity=true (+study=weights)")
    sizes = sorted(found["batch_size"].unique())
    written: list[Path] = []
    for batch in sizes:
        ending = "" if len(sizes) == 1 else f"_b{batch}"
        written += _draw(found[found["batch_size"] == batch], folder, f"{NAME}{suffix}{ending}")
    return written


def _draw(found: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    shown = found[found["weighing"].isin(_SHOWN)]
    shown = shown.assign(line=_labels(shown))
    lines = list(dict.fromkeys(shown["line"]))
    look = {each: one for each, one in looks.distinct(_SHOWN).items() if each in set(shown["weighing"])}
    fig = style.figure(_LINE_IN * len(lines) + style.LEGEND_ROW_IN * -(-len(look) // 2) + 0.5)
    left, right = fig.subplots(1, 2, sharey=True)
    for number, line in enumerate(lines):
        _points(left, shown[(shown["line"] == line) & (shown["weighing"] != OWN)], "ratio", number, look)
        _points(right, shown[shown["line"] == line], "difference", number, look)
    left.axvline(1.0, color=look[OWN].color, linewidth=0.8, zorder=1)
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xlim(*_around(shown["ratio"], 1.4))
    left.set_xlabel("KL over that of\nrenormalize")
    right.axvline(0.0, color="#999999", linewidth=0.6, zorder=1)
    # without vanilla beside them none has a difference
    points = [0.0, *shown["difference"].dropna()]
    right.set_xlim(min(points) * 1.15 - 1.0, max(points) + 2)
    right.set_xlabel("accuracy: points\nto vanilla")
    left.set_yticks(range(len(lines)), lines, fontsize=6)
    left.set_ylim(len(lines) - 0.4, -0.6)
    handles: list[style.Handle] = [Line2D([], [], **one.marker_kwargs()) for one in look.values()]
    style.legend(fig, handles, list(look), columns=2)
    return style.save(fig, folder, name, found.drop(columns=["policy"]))


def _around(values: pd.Series, room: float) -> tuple[float, float]:
    """Limits by the values; wide intervals may leave the frame (their ends are in the CSV)."""
    there = [1.0, *values.dropna()]
    return min(there) / room, max(there) * room


def _labels(rows: pd.DataFrame) -> list[str]:
    """The policy and what share of vanilla's experts it runs; all its parameters where others would be called alike."""
    short, full = [], []
    for of, policy, phases in rows[["of", "policy", "phases"]].itertuples(index=False):
        act = "" if phases == "decode" else f" [{phases}]"
        target = re.search(r"match_active=([\d.]+)", of)
        short.append(f"{policy} at {float(target[1]):.0%}{act}" if target and float(target[1]) < 1 else of + act)
        full.append(of + act)
    several = {name for name in short if len({b for a, b in zip(short, full, strict=True) if a == name}) > 1}
    return [b if a in several else a for a, b in zip(short, full, strict=True)]


def _points(axes: Axes, part: pd.DataFrame, quantity: str, number: int, look: Mapping[str, looks.Look]) -> None:
    rows = part[part[quantity].notna()].to_dict("records")
    for row in rows:
        one = look[row["weighing"]]
        at = number + 0.16 * (list(look).index(row["weighing"]) - (len(look) - 1) / 2)
        low, high = row[f"{quantity}_low"], row[f"{quantity}_high"]
        if not pd.isna(low):
            axes.plot([low, high], [at, at], color=one.color, linewidth=0.7, zorder=2)
        axes.plot([row[quantity]], [at], **one.marker_kwargs() | {"markersize": 3.2}, zorder=3)
