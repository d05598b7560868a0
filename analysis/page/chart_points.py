"""The points of the interactive Pareto chart: every estimate that a point can be placed or described by."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import TypedDict

import pandas as pd

from analysis import guards, verdicts
from analysis.figures import looks
from analysis.figures.pareto import MACRO, points_of
from analysis.frame_rows import Row, rows_of
from analysis.frontiers import SAVINGS
from analysis.labels import of_purpose
from analysis.page.text import visible
from analysis.resample import Resampler
from analysis.study import Study
from lynx_exp.wording import counted

TIMES = ("speedup", "step_ms")
"""Of AXES those that a time which is not final leaves in doubt."""

AXES: dict[str, tuple[str, str, str, int]] = {
    "speedup": ("decode speed-up", "× vanilla", "more", 2),
    "active_experts": ("active experts", "per layer and step", "less", 2),
    "step_ms": ("decode step", "ms", "less", 2),
    "difference": ("difference to vanilla", "points", "more", 1),
    "score": ("score", "points", "more", 1),
    "kl": ("KL divergence from vanilla", "millinats per token", "less", 2),
}
"""An estimate of `analysis.compare.results`: quantity, unit, what is better, digits shown."""

ACROSS, UP = ("speedup", "active_experts", "step_ms"), ("difference", "score", "kl")


def chart(study: Study) -> dict[str, object]:
    """Axes, looks and points, as JSON. A quantity that no point has is no axis.

    Points of one setting and task share a chart, one panel a batch size; the macro means come first.
    """
    rows, summary = study.rows, study.summary
    probable = _frontiers(study)
    means = [_point(row, MACRO, "points", probable["means"].get(at)) for at, row in _records(summary)]
    single = [_point(row, _task(row), row["unit"], probable["rows"].get(at)) for at, row in _records(rows)]
    alone = rows["subtask"].nunique() == 1  # then the mean says the same
    points = single if alone else means + single
    known = {name for point in points if point["policy"] != "vanilla" for name in point["values"]}
    told = ("label", "unit", "better", "digits")
    axes = {name: dict(zip(told, about, strict=True)) for name, about in AXES.items() if name in known}
    look = looks.looks(pd.concat([frame[["series", "policy"]] for frame in (summary, rows) if len(frame)]))
    return {
        "axes": axes,
        "across": [name for name in ACROSS if name in axes],
        "up": [name for name in UP if name in axes],
        "looks": {visible(name): [one.color, one.marker, one.fill] for name, one in look.items()},
        "times": list(TIMES),
        "margin": study.margin,
        "points": points,
    }


class _Point(TypedDict):
    """Of a chart."""

    setting: str
    task: str
    batch: int
    series: str
    policy: str
    phases: str
    params: dict[str, str]
    unit: str
    guard: str
    paired: bool
    final: bool
    """Whether its times may be ranked: else it beats nobody by them, and is drawn pale."""
    control: bool
    """It beats nobody."""
    partial: str
    about: str
    values: dict[str, list[float | None]]
    """Of each quantity: estimate, ends of its interval."""
    verdict: str
    frontier: Mapping[str, float]


def _records(frame: pd.DataFrame) -> Iterator[tuple[Hashable, Row]]:
    return zip(frame.index, rows_of(frame), strict=True)


def _frontiers(study: Study) -> dict[str, dict[Hashable, dict[str, float]]]:
    """Of each point that can be on a frontier of differences, by its index: saving -> in what share of worlds it is."""
    found: dict[str, dict[Hashable, dict[str, float]]] = {"means": {}, "rows": {}}
    resampler = Resampler(study.records)
    for setting in sorted(set(study.rows["setting"])):
        part = study.of(setting)
        for saving in SAVINGS:
            for name, frame in (("means", part.summary.assign(subtask=MACRO)), ("rows", part.rows)):
                points, _ = points_of(frame, part.rows, saving, resampler)
                for at, point in _records(points[~of_purpose(points["policy"], "control")]):
                    found[name].setdefault(at, {})[saving.column] = round(point["frontier_probability"], 3)
    return found


def _task(row: Row) -> str:
    return visible(row["subtask"] if row["task"] == row["subtask"] else f"{row['task']}: {row['subtask']}")


def _point(row: Row, task: str, unit: str, frontier: Mapping[str, float] | None) -> _Point:
    values: dict[str, list[float | None]] = {}
    for name in AXES:
        numbers = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
        if not math.isnan(numbers[0]):
            values[name] = [None if math.isnan(number) else round(number, 6) for number in numbers]
    if row["policy"] != "vanilla" and not row["paired"]:
        values.pop("difference", None)
    done, of = row.get("subtasks", 1), row.get("all_subtasks", 1)
    return {
        "setting": visible(row["setting"]),
        "task": task,
        "batch": int(row["batch_size"]),
        "series": visible(row["series"]),
        "policy": visible(row["policy"]),
        "phases": visible(row["phases"]),
        "params": {visible(name): visible(_short(value)) for name, value in json.loads(row["policy_params"]).items()},
        "unit": unit,
        "guard": row["guard"] if guards.is_flagged(row["guard"]) else "",
        "paired": bool(row["paired"]),
        "final": bool(row["timing_final"]),
        "control": bool(of_purpose(pd.Series([row["policy"]]), "control").iloc[0]),
        "partial": f"{done} of {counted(of, 'subtask')}" if done < of else "",
        "about": _about(row),
        "values": values,
        "verdict": _verdict(row),
        "frontier": frontier or {},
    }


def _verdict(row: Row) -> str:
    """What its difference amounts to."""
    margin, verdict = f"±{row['margin']:g} points", row["verdict"]
    if verdict == verdicts.WITHIN:
        return f"shown to be within {margin} of vanilla"
    if verdict == verdicts.FEW_LANES:
        return f"within {margin} if lanes are alike; too few lanes: {row['lanes_needed']:,.0f} would tell"
    if verdict == verdicts.OPEN:
        return f"undecided; {row['documents_needed']:,.0f} documents could show ±{row['margin']:g}"
    words = {
        verdicts.WORSE: "worse than vanilla, beyond chance",
        verdicts.BETTER: "better than vanilla, beyond chance",
        verdicts.PERHAPS_WORSE: "worse than vanilla if it were the only row, but not among so many",
        verdicts.PERHAPS_BETTER: "better than vanilla if it were the only row, but not among so many",
    }
    return words.get(verdict, "")


def _about(row: Row) -> str:
    """What stands behind the point."""
    if "subtasks" in row:
        return f"{counted(row['subtasks'], 'subtask')}, {counted(row['cells'], 'cell')}"
    return f"{counted(row['documents'], 'document')} in {counted(row['lanes'], 'lane')}, seed {row['seed']}"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
