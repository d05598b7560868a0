"""What each policy costs at the same number of active experts: in points of accuracy, and in divergence from
vanilla."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import looks, style
from analysis.labels import of_purpose
from analysis.study import Study

NAME = "matched_active"


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One line per policy through its settings, means over the subtasks; one figure per batch size.

    Needs cells with `fidelity`.
    """
    name, summary = f"{NAME}{suffix}", study.summary
    summary = summary[~of_purpose(summary["policy"], "probe")] if len(summary) else summary
    known = summary[summary["kl"].notna()] if len(summary) else summary
    if known.empty:
        return style.skip(name, "no cell compared its distributions with vanilla's (fidelity=true)")
    complete = known[known["subtasks"] == known["all_subtasks"]]
    if complete.empty:
        return style.skip(name, "no policy has finished all subtasks of a batch size")
    sizes = sorted(complete["batch_size"].unique())
    written: list[Path] = []
    for batch in sizes:
        part = complete[complete["batch_size"] == batch].copy()
        part["line"] = [_line(*fields) for fields in part[["policy", "policy_params"]].itertuples(index=False)]
        vanilla = summary[(summary["policy"] == "vanilla") & (summary["batch_size"] == batch)]
        written += _draw(part, vanilla, folder, name if len(sizes) == 1 else f"{name}_b{batch}")
    return written


_USUAL = {
    "power": 4.0,
    "utility": "mass",
    "guarantee": 0,
    "rounds": None,
    "warm_up": 1,
    "score": "prob",
    "primary": 1,
    "metric": "frobenius",
    "weights": "renormalize",
}
"""Parameters that make another policy of it rather than a stronger or weaker setting of the same, at their defaults."""


def _line(policy: str, params: str) -> str:
    """The policy, with what does not merely set how many experts run."""
    given = json.loads(params)
    shown = {name: given[name] for name, usual in _USUAL.items() if given.get(name, usual) != usual}
    inside = ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()
    )
    return f"{policy}({inside})" if inside else policy


def _draw(part: pd.DataFrame, vanilla: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    lines = part[["line", "policy"]].drop_duplicates().rename(columns={"line": "series"}).sort_values("series")
    look = looks.looks(lines)
    rings = looks.ring_entry(part)
    columns_of_legend = 1 if rings[0] else 2  # its label takes a whole line
    fig = style.figure(4.4 + style.LEGEND_ROW_IN * -(-(len(look) + len(rings[0])) // columns_of_legend))
    above, below = fig.subplots(2, 1, sharex=True)
    for series, drawn in look.items():
        line = part[part["line"] == series].sort_values("active_experts")
        _plot(above, line, "difference", drawn)
        _plot(below, line[line["kl"] > 0], "kl", drawn)
    looks.ring(above, part, "active_experts", "difference")
    looks.ring(below, part[part["kl"] > 0], "active_experts", "kl")
    above.set_yscale("symlog", linthresh=5, linscale=1.2)
    _frame(above, part["difference"], below=0.25, above=3.0)
    above.axhline(0, color="#000000", linewidth=0.6, linestyle=":")
    if len(vanilla):
        at = float(vanilla["active_experts"].iloc[0])
        for axes in (above, below):
            axes.axvline(at, color="#000000", linewidth=0.6, linestyle=":")
        above.annotate("vanilla", (at, 0), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=6)
    above.set_yticks([0, -2, -5, -10, -20, -50], ["0", "−2", "−5", "−10", "−20", "−50"])
    above.set_ylabel("accuracy difference (points)")
    below.set_yscale("log")
    positive = part.loc[part["kl"] > 0, "kl"]
    if len(positive):
        below.set_ylim(positive.min() / 3, positive.max() * 3)
    below.set_ylabel("KL from vanilla (millinats per token)")
    below.set_xlabel("active experts (per layer and step)")
    handles = [Line2D([], [], **drawn.marker_kwargs() | {"linestyle": "-"}) for drawn in look.values()]
    style.legend(fig, handles + rings[0], [*look, *rings[1]], columns=columns_of_legend)
    columns = ["series", "policy", "policy_params", "active_experts", "selection_us", "guard"]
    for quantity in ("difference", "kl", "agreement"):
        columns += [quantity, f"{quantity}_low", f"{quantity}_high"]
    return style.save(fig, folder, name, part[columns].sort_values(["policy", "active_experts"]))


def _frame(axes: Axes, values: pd.Series, *, below: float, above: float) -> None:
    """Limits by the values; wide intervals may leave the frame (their ends are in the CSV)."""
    least = min(float(values.min()), -1.0)
    axes.set_ylim(least * (1 + below), max(float(values.max()), 0.0) + above)


def _plot(axes: Axes, line: pd.DataFrame, quantity: str, drawn: looks.Look) -> None:
    axes.plot(line["active_experts"], line[quantity], **drawn.marker_kwargs() | {"linestyle": "-"})
    low, high = line[f"{quantity}_low"], line[f"{quantity}_high"]
    if quantity == "kl":
        low = low.clip(lower=line[quantity] / 10)  # an interval that reaches 0 has no end on a logarithmic axis
    axes.vlines(line["active_experts"], low, high, color=drawn.color, linewidth=0.7, zorder=1.9)
