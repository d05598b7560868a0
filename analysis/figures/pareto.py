"""What a policy costs in accuracy against what it saves: measured speed-up, and active experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from analysis.figures import looks, style
from analysis.frontiers import SAVINGS, SPEEDUP, Saving, families, frontier_probability, nondominated, replicates
from analysis.labels import of_purpose
from analysis.outputs import write_csv
from analysis.resample import Resampler
from analysis.study import Study

MACRO = "mean over subtasks"
_DEEP = -20.0
"""A loss beyond this many points would flatten everything near vanilla: the axis turns logarithmic far from zero."""
_LINEAR = 5.0
_BAND = "#eef3ee"
_LABEL_IN = 2.0
"""Inches that the label of the vertical axis is long."""


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """Per saving two figures: macro means with one panel per batch size, and small multiples, one row per subtask.

    More batch sizes than one column holds are spread over several files, named after their batch sizes. Beside the
    figures of macro means stands what each policy's settings dominate together (`NAME_families.csv`). Probes of a
    model's tolerance have figures of their own.
    """
    means, rows = (frame[~of_purpose(frame["policy"], "probe")] for frame in (study.summary, study.rows))
    means = means.assign(subtask=MACRO)
    resampler = Resampler(study.records)
    look = looks.looks(rows)  # the same in all figures of the study
    written = []
    for saving in SAVINGS:
        for name, frame, layout, most in (
            (f"pareto_{saving.name}", means, _stacked, 4),
            (f"pareto_{saving.name}_tasks", rows, _grid, 2),
        ):
            points, left_out = points_of(frame, study.rows, saving, resampler)
            if points.empty or set(points["policy"]) <= {"vanilla"}:
                style.skip(f"{name}{suffix}", saving.missing)
                continue
            for part, ending in _split(points, most):
                file_name = f"{name}{ending}{suffix}"
                written += _draw(part, look, left_out, study.margin, saving, folder, file_name, layout)
            if frame is means:
                file = folder / f"{name}_families{suffix}.csv"
                write_csv(file, families_of(points, study.rows, saving, resampler))
                written.append(file)
    return written


def points_of(
    frame: pd.DataFrame, rows: pd.DataFrame, saving: Saving, resampler: Resampler
) -> tuple[pd.DataFrame, list[str]]:
    """The points of `frame` (rows, or macro means) that can be drawn, and a line for each reason why others cannot.

    `x` is the saving, `y` the difference to vanilla in points; `frontier` marks those that no other of the same subtask
    and batch size beats, `frontier_probability` how often that is so among bootstrap worlds.
    """
    if frame.empty:
        return pd.DataFrame({"policy": []}), []
    reasons = {
        "no vanilla partner": ~frame["paired"].astype(bool),
        f"no {saving.label[0]} on record": frame[saving.column].isna(),
        "no difference in points": frame["difference"].isna() | (frame.get("unit", "%") == "own"),
        "not of all subtasks": frame["subtasks"] < frame["all_subtasks"] if "all_subtasks" in frame else False,
    }
    drawn = pd.Series(True, index=frame.index)
    left_out: list[tuple[str, pd.Series]] = []
    for reason, affected in reasons.items():
        hit = drawn & affected
        left_out += [(reason, hit)] if hit.any() else []
        drawn &= ~hit
    alone = drawn & ~_has_rival(frame[drawn]).reindex(frame.index, fill_value=False)
    left_out += [("no policy beside it", alone)] if alone.any() and not alone[drawn].all() else []
    kept = frame[drawn & ~alone] if not alone[drawn].all() else frame[drawn]
    keys = ["subtask", "batch_size", "series", "policy", "policy_params", "phases", "guard", "verdict", "timing_final"]
    points = kept[keys].copy()
    for axis, column in (("x", saving.column), ("y", "difference")):
        for end in ("", "_low", "_high"):
            points[f"{axis}{end}"] = kept[f"{column}{end}"]
    points["frontier"], points["frontier_probability"] = False, 0.0
    for _, part in points.groupby(["subtask", "batch_size"]):
        final = part["timing_final"].astype(bool) if saving.column == "speedup" else True
        beats = np.asarray(
            ~of_purpose(part["policy"], "control") & final
        )  # a time that is not final is drawn, and beats nobody
        counted = part[beats]
        benefits = pd.DataFrame({"saving": saving.sign * counted["x"], "y": counted["y"]})
        points.loc[counted.index, "frontier"] = nondominated(benefits)
        worlds = replicates(_behind(part, rows), saving, resampler)
        points.loc[part.index, "frontier_probability"] = frontier_probability(worlds, beats)
    lines = [f"not drawn, {reason}: {style.listed(_named(frame, hit, kept))}" for reason, hit in left_out]
    return points, lines


def _has_rival(rows: pd.DataFrame) -> pd.Series:
    """Whether a policy other than vanilla stands in the same panel: a lone star says nothing."""
    rival = rows["policy"] != "vanilla"
    return rival.groupby([rows["subtask"], rows["batch_size"]]).transform("any").astype(bool)


def _named(frame: pd.DataFrame, hit: pd.Series, kept: pd.DataFrame) -> list[str]:
    """The settings that `hit` leaves out, with the place where they are left out if they are drawn at others."""
    elsewhere = set(kept["series"])
    several = frame["subtask"].nunique() > 1
    names = []
    for (subtask, batch), there in frame.groupby(["subtask", "batch_size"], sort=False):
        place = f"{subtask}, batch size {batch}" if several else f"batch size {batch}"
        missed = list(there.loc[hit[there.index], "series"])
        if len(missed) == len(there) > 1 and set(missed) <= elsewhere:
            names.append(f"all at {place}")
        else:
            names += [f"{series} ({place})" if series in elsewhere else series for series in missed]
    return names


def families_of(points: pd.DataFrame, rows: pd.DataFrame, saving: Saving, resampler: Resampler) -> pd.DataFrame:
    """Hypervolume of each policy's settings by batch size, those whose time is not final left out; no row where
    vanilla's own saving is not on record."""
    parts = []
    if saving is SPEEDUP:
        points = points[points["timing_final"].astype(bool)]
    for batch, part in points.groupby("batch_size", sort=True):
        vanilla = part.loc[part["policy"] == "vanilla", "x"]
        if vanilla.empty:
            continue
        worlds = replicates(_behind(part, rows), saving, resampler)
        found = families(part, worlds, saving, origin=saving.sign * float(vanilla.iloc[0]))
        parts.append(found.assign(batch_size=batch))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"policy": [], "batch_size": []})


def _behind(points: pd.DataFrame, rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows that each point averages."""
    usable = rows[rows["higher_is_better"].astype(bool) & (rows["unit"] != "own")]
    found = []
    for series, batch, subtask in points[["series", "batch_size", "subtask"]].itertuples(index=False):
        own = usable[(usable["series"] == series) & (usable["batch_size"] == batch)]
        found.append(own if subtask == MACRO else own[own["subtask"] == subtask])
    return found


def _split(frame: pd.DataFrame, most: int) -> list[tuple[pd.DataFrame, str]]:
    """Parts of at most that many batch sizes, with an ending for the file name if there are several."""
    batches = sorted(frame["batch_size"].unique())
    if len(batches) <= most:
        return [(frame, "")]
    groups = [batches[start : start + most] for start in range(0, len(batches), most)]
    return [(frame[frame["batch_size"].isin(group)], "_b" + "-".join(map(str, group))) for group in groups]


Panels = dict[tuple[str, int], Axes]
Layout = Callable[[pd.DataFrame, Saving, float], tuple[Figure, Panels]]


def _draw(
    points: pd.DataFrame,
    look: dict[str, looks.Look],
    left_out: list[str],
    margin: float,
    saving: Saving,
    folder: Path,
    name: str,
    layout: Layout,
) -> list[Path]:
    handles, labels = looks.family_entries(points, look)
    handles.append(Patch(facecolor=_BAND))
    unsure = saving.column == "speedup" and not points["timing_final"].astype(bool).all()
    pale = "beaten, or time not final (~)" if unsure else "beaten by another"
    labels.append(f"within ±{margin:g}; dotted: frontier;\npale: {pale}")
    rings = looks.ring_entry(points)
    handles, labels = handles + rings[0], labels + rings[1]
    legend_in = style.LEGEND_ROW_IN * len(labels)
    fig, panels = layout(points, saving, legend_in)
    deep = points["y"].min() < _DEEP
    for key, part in points.groupby(["subtask", "batch_size"], sort=False):
        _panel(panels[key], part, saving, look, margin, bins=4 if layout is _grid else 6)
        if deep:
            _compress(panels[key], _SPARSE if layout is _grid else _DENSE)
    unit = f"(points, log scale beyond ±{_LINEAR:g})" if deep else "(points)"
    middle = 1.0 - 0.5 * (fig.get_figheight() - legend_in) / fig.get_figheight()
    size = style.RC["axes.labelsize"]
    fig.supylabel(f"accuracy difference to vanilla\n{unit}", y=middle, fontsize=size, multialignment="center")
    style.legend(fig, handles, labels)
    return style.save(fig, folder, name, points, left_out)


def _stacked(points: pd.DataFrame, saving: Saving, legend_in: float) -> tuple[Figure, Panels]:
    batches = sorted(points["batch_size"].unique())
    fig = style.figure(max(1.55 * len(batches) + 0.35, _LABEL_IN) + legend_in)
    grid = fig.subplots(len(batches), 1, sharex=saving.sign > 0, squeeze=False)
    grid[-1, 0].set_xlabel(" ".join(saving.label))
    panels = {}
    for axes, batch in zip(grid[:, 0], batches, strict=True):
        axes.set_title(f"batch size {batch}", loc="left")
        panels[MACRO, batch] = axes
    return fig, panels


def _grid(points: pd.DataFrame, saving: Saving, legend_in: float) -> tuple[Figure, Panels]:
    """A row a subtask and a column a batch size; where not every subtask is there at every one, panel after panel."""
    batches, subtasks = sorted(points["batch_size"].unique()), sorted(points["subtask"].unique())
    there = sorted(set(points[["subtask", "batch_size"]].itertuples(index=False, name=None)))
    if len(there) < len(batches) * len(subtasks):
        return _in_turn(there, saving, legend_in)
    fig = style.figure(max(1.1 * len(subtasks) + 0.35, _LABEL_IN) + legend_in)
    grid = fig.subplots(len(subtasks), len(batches), sharex="col", sharey="row", squeeze=False)
    panels = {}
    for axes in grid[-1]:
        axes.set_xlabel("\n".join(saving.label))
    for row, subtask in enumerate(subtasks):
        for column, batch in enumerate(batches):
            head = f"batch size {batch}\n" if row == 0 else ""
            grid[row, column].set_title(head + (subtask if column == 0 else ""), loc="left", fontsize=6.5)
            panels[subtask, batch] = grid[row, column]
    return fig, panels


def _in_turn(there: Sequence[tuple[str, int]], saving: Saving, legend_in: float) -> tuple[Figure, Panels]:
    columns = min(2, len(there))
    rows = -(-len(there) // columns)
    fig = style.figure(max(1.3 * rows + 0.35, _LABEL_IN) + legend_in)
    grid = fig.subplots(rows, columns, sharey="row", squeeze=False).ravel()
    panels = {}
    for at, (subtask, batch) in enumerate(there):
        grid[at].set_title(f"batch size {batch}\n{subtask}", loc="left", fontsize=6.5)
        if at + columns >= len(there):
            grid[at].set_xlabel("\n".join(saving.label))
        panels[subtask, batch] = grid[at]
    for axes in grid[len(there) :]:
        axes.set_axis_off()
    return fig, panels


def _panel(
    axes: Axes, part: pd.DataFrame, saving: Saving, look: dict[str, looks.Look], margin: float, *, bins: int
) -> None:
    axes.axhspan(-margin, margin, color=_BAND, zorder=0.5)
    axes.axhline(0.0, color="#999999", linewidth=0.6, zorder=1)
    best = part[part["frontier"]].sort_values(["x", "y"], ascending=[True, saving.sign < 0])
    steps = "steps-pre" if saving.sign > 0 else "steps-post"
    axes.plot(best["x"], best["y"], color="#444444", linewidth=0.8, linestyle=":", drawstyle=steps, zorder=2)
    marked = part["frontier"] | of_purpose(part["policy"], "baseline", "control")
    drawn = [look[name] if full else look[name].faint() for name, full in zip(part["series"], marked, strict=True)]
    looks.error_bars(axes, part, [one.color for one in drawn])
    for point, one, full in zip(part.to_dict("records"), drawn, marked, strict=True):
        height = 6 if point["policy"] == "vanilla" else 5 if point["policy"] == "no_drop" else 4 if full else 3
        axes.plot([point["x"]], [point["y"]], **one.marker_kwargs(), zorder=height)
    looks.ring(axes, part, "x", "y")
    axes.xaxis.set_major_locator(MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(0.06)


_DENSE = (-100, -50, -20, -10, -5, 0, 5, 10, 20, 50, 100)
_SPARSE = (-100, -20, -5, 0, 5, 20, 100)


def _compress(axes: Axes, ticks: Sequence[float]) -> None:
    shared = axes.get_shared_y_axes().get_siblings(axes)
    low = 1.3 * min(one.dataLim.y0 for one in shared)
    high = max(1.1 * max(one.dataLim.y1 for one in shared), 0.5 * _LINEAR)
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.7)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
