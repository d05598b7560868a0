"""What a policy is worth under load: TPOT (median, and its tail) and throughput against what the server is asked to do
at once."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.lines import Line2D

from analysis.figures import looks, style
from lynx_exp.store.read_serving import STOCK

NAME = "serving"
PANELS = (
    ("median TPOT (ms)", "tpot_median_ms"),
    ("p99 TPOT (ms)", "tpot_p99_ms"),
    ("throughput (tokens per second)", "output_throughput"),
)


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """A line a policy over the concurrency, or over the request rate where that is what varies, with the range over
    runs; a figure a model."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with matplotlib.rc_context(style.RC):
        for model, part in rows.groupby("model", sort=False):
            by_rate = part["request_rate"].nunique() > part["at_once"].nunique()
            name = NAME if rows["model"].nunique() == 1 else f"{NAME}-{model}"
            written += _draw(part, folder, name, "request_rate" if by_rate else "at_once")
    return written


def _draw(rows: pd.DataFrame, folder: Path, name: str, along: str) -> list[Path]:
    points = rows.dropna(subset=[along, "tpot_median_ms"]).assign(series=rows["policy_label"])
    points["policy"] = points["policy"].replace(STOCK, "vanilla")  # drawn as it is elsewhere
    if points.empty:
        return style.skip(name, "no run says how many requests it had at once, nor at what rate they came")
    look = looks.looks(points)
    labels = list(look)
    fig = style.figure(1.35 * len(PANELS) + style.LEGEND_ROW_IN * len(labels) + 0.25)
    panels = fig.subplots(len(PANELS), 1, sharex=True)
    for axes, (label, column) in zip(panels, PANELS, strict=True):
        for series, part in points.groupby("series", sort=False):
            part = part.sort_values(along)
            color = look[str(series)].color
            axes.plot(part[along], part[column], color=color, zorder=2)
            axes.vlines(
                part[along], part[f"{column}_low"], part[f"{column}_high"], color=color, linewidth=0.7, zorder=2
            )
            axes.plot(part[along], part[column], **look[str(series)].marker_kwargs(), zorder=3)
        axes.margins(x=0.06, y=0.12)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
    panels[-1].set_xticks(sorted(points[along].unique()))
    fig.align_ylabels(panels)
    panels[-1].set_xlabel("concurrency (requests at once)" if along == "at_once" else "arrivals (requests per second)")
    style.legend(fig, [Line2D([], [], **look[label].marker_kwargs()) for label in labels], labels)
    return style.save(fig, folder, name, points.drop(columns="series"))
