"""Reads from a run the numbers that claims name: from the tables of a study, or from the JSON line of a benchmark."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from analysis import verdicts
from analysis.study import study
from benchmarks.artifact import paper
from benchmarks.artifact.claims import Claims, Experiment, TableClaim, TextClaim, plain
from benchmarks.artifact.compare import Compared, Tolerance, compare
from benchmarks.artifact.pages import numbers

MEANS = "mean of five"
"""A subtask column's word for means over subtasks."""


class Output(Protocol):
    """Of one experiment."""

    def cell(self, claim: TableClaim, at: int, label: str, column: str, text: str) -> list[float]:
        """Numbers for the cell, `at` counting the table's rows; ValueError where the run has no such row."""
        ...

    def quantity(self, name: str) -> list[float]:
        """One that a sentence names."""
        ...


class StudyOutput:
    """A folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = study(folder)
        self._rows, self._means = found.rows, found.summary

    def quantity(self, name: str) -> list[float]:
        """`means[series=vanilla,batch_size=16].active_experts`, `percent(rows[...].full_steps)`, of a figure's CSV
        `figure fig7[subtask=mini_gsm8k,rank=0].difference`, or a sentence of `paper`."""
        match = re.fullmatch(r"(percent\()?(means|rows|figure [\w-]+)\[(.*?)\]\.(\w+)\)?", name)
        if match is None:
            return paper.quantity(self._figure, name)
        percent, which, wanted, column = match.groups()
        if which.startswith("figure "):
            frame = self._figure(which.removeprefix("figure "))
        else:
            frame = self._means if which == "means" else self._rows
        for part in filter(None, re.split(r",(?![^(]*\))", wanted)):
            key, _, value = part.partition("=")
            frame = frame[frame[key].astype(str) == value]
        if len(frame) != 1:
            raise ValueError(f"{name}: {len(frame)} such rows, and there must be one")
        return [float(frame[column].iloc[0]) * (100 if percent else 1)]

    def _figure(self, name: str) -> pd.DataFrame:
        """The numbers of a figure, which lie in the folder of the one study that the command ran."""
        files = sorted(self._folder.glob(f"*/figures/{name}.csv"))
        if len(files) != 1:
            raise ValueError(f"{self._folder}: {len(files)} studies drew {name}, and there must be one")
        return pd.read_csv(files[0])

    def cell(self, claim: TableClaim, at: int, label: str, column: str, text: str) -> list[float]:
        quantity, _, setting = column.partition("@")
        if quantity == "divergence_ratio":
            return self._of_weights(label, setting, is_bold="**" in text)
        parts = [claim.rows.get(plain(part), plain(part)) for part in label.split(" · ")]
        named = dict(zip((one for one in claim.columns if one in ("series", "subtask")), parts, strict=True))
        subtask = named.get("subtask", MEANS)
        frame = self._means if subtask == MEANS else self._rows[self._rows["subtask"] == subtask]
        frame = frame[(frame["batch_size"] == claim.batch) & (frame["setting"] == setting)]
        nearest = numbers(text)[0].value if quantity == "active_experts" else math.nan
        if quantity != "active_experts" and "active_experts" in claim.columns:  # its active experts identify the row
            row = claim.table().rows[at]
            shown = numbers(row[claim.columns.index("active_experts")])
            nearest = shown[0].value if shown else math.nan
        found = [_one(frame, name, nearest, label) for name in _names(named.get("series", "vanilla"))]
        if quantity == "difference":
            _check_verdict(found, text)
        if len(found) == 1:
            return _values(found[0], quantity)
        several = sorted((_values(row, quantity)[0] for row in found), key=abs)
        return [several[0], several[-1]]  # `7.23 to 7.34`

    def _of_weights(self, label: str, weighing: str, *, is_bold: bool) -> list[float]:
        """Of the figure `weights`: divergence with other weights over that with a policy's own, and its interval."""
        of, _, phases = plain(label).partition(" [")
        frame = self._figure("weights")
        same = (frame["of"] == of) & (frame["phases"] == (phases.rstrip("]") or "decode"))
        frame = frame[same & (frame["weighing"] == weighing)]
        if len(frame) != 1:
            raise ValueError(f"{label}, {weighing}: {len(frame)} such rows in the figure, and there must be one")
        ratio, low, high = (float(frame[name].iloc[0]) for name in ("ratio", "ratio_low", "ratio_high"))
        if is_bold == (low <= 1 <= high):
            raise ValueError(f"{ratio:.3f} [{low:.3f}, {high:.3f}]; bold is what differs from 1")
        return [ratio, low, high]


def _names(label: str) -> list[str]:
    """`lexi, top_p, naee` are several, `lynx(1, 2)` is one."""
    return re.split(r", (?![^(]*\))", label)


def _one(frame: pd.DataFrame, label: str, nearest: float, where: str) -> Any:
    """The row of the series that the label is short for; of several the one with as many active experts."""
    match = frame[[_is_short(label, series) for series in frame["series"]]]
    if match.empty:
        raise ValueError(f"{where}: no such row in the results")
    exact = match[match["series"] == label]
    match = exact if len(exact) else match
    distance = (match["active_experts"].astype(float) - nearest).abs().fillna(0.0)
    return match.loc[distance.idxmin()]


def _is_short(label: str, series: str) -> bool:
    """`lynx(1, 2)` for `lynx(alpha=1, beta=2)`, `coverage` for each of its settings, ` [prefill]` for ` [prefill]`."""
    (label, _, phases), (series, _, series_phases) = label.partition(" ["), series.partition(" [")
    (name, _, inside), (series_name, _, series_inside) = label.partition("("), series.partition("(")
    if (name, phases) != (series_name, series_phases):
        return False
    given = [part.strip() for part in inside.rstrip(")").split(",") if part.strip()]
    held = [part.strip() for part in series_inside.rstrip(")").split(",") if part.strip()]
    values = [part.partition("=")[2] for part in held]
    pairs = zip(given, values, strict=False)
    return len(given) <= len(held) and all(part in held if "=" in part else part == value for part, value in pairs)


def _check_verdict(rows: Sequence[Any], text: str) -> None:
    """Bold is worse than chance, ±1 is shown to be within a point."""
    found = [row["verdict"] for row in rows]
    if ("**" in text) != all(one == verdicts.WORSE for one in found):
        raise ValueError(f"{', '.join(found)}; bold is what is worse than chance")
    if len(rows) == 1 and ("±" in text) != (found[0] == verdicts.WITHIN):
        raise ValueError(f"{found[0]}; ± is what is shown to be within")


def _values(row: Any, quantity: str) -> list[float]:
    """As a cell prints them: the estimate, its interval, and ±MARGIN if it is shown to be within."""
    ends = [float(row[f"{quantity}{end}"]) for end in ("", "_low", "_high") if f"{quantity}{end}" in row]
    if quantity == "difference":
        if row["policy"] == "vanilla":
            return [0.0, float(row["score"])]
        return [*ends, *([float(row["margin"])] if row["verdict"] == verdicts.WITHIN else [])]
    return [1.0] if quantity == "speedup" and row["policy"] == "vanilla" else ends


class JsonOutput:
    """The line of JSON that a benchmark ends with, or a file of `benchmarks/gpu.py`."""

    def __init__(self, line: str) -> None:
        self._found: dict[str, Any] = json.loads(line)
        sections = {name: own["records"] for name, own in self._found.get("sections", {}).items()}
        self._lists: dict[str, list[dict[str, Any]]] = {"cases": self._found.get("cases", []), **sections}

    def cell(self, claim: TableClaim, at: int, label: str, column: str, text: str) -> list[float]:
        """Its cases in the order of the table's rows, headings within it left out."""
        table = claim.table()
        cases = self._found["cases"]
        place = at - sum(table.is_bold[:at])
        if len(cases) != len(table.rows) - sum(table.is_bold):
            raise ValueError(f"{label}: the table has {len(table.rows)} rows, the benchmark {len(cases)} cases")
        if cases[place]["scenario"] != label:
            raise ValueError(f"{label}: the benchmark has {cases[place]['scenario']!r} in this place")
        return [100 * float(cases[place][name]) for name in ("observed", "low", "high")]

    def quantity(self, name: str) -> list[float]:
        """`ratio`, `cases[batch=4].ratio`, `FUNCTION(cases[...].FIELD)`; of a GPU's file SECTION[...].FIELD."""
        match = re.fullmatch(r"(?:(\w+)\()?(?:(\w+)\[(.*?)\]\.)?([\w.]+)\)?", name)
        if match is None:
            raise ValueError(f"{name}: no FUNCTION(cases[FIELD=VALUE,...].FIELD)")
        function, which, wanted, field = match.groups()
        found = list(self._cases(which, wanted, field)) if which else [float(self._found[field])]
        if not found:
            raise ValueError(f"{name}: the benchmark has no such case")
        return [FUNCTIONS[function](found) if function else found[0]]

    def _cases(self, which: str, wanted: str, field: str) -> Iterator[float]:
        pairs = [part.split("=") for part in wanted.split(",") if part]
        for case in self._lists.get(which, ()):
            if all(str(case.get(key)) == value for key, value in pairs):
                value: Any = case
                for step in field.split("."):
                    value = value[int(step)] if isinstance(value, list) else (value or {}).get(step)
                if value is not None:
                    yield float(value)


FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "least": min,
    "most": max,
    "of_ten_seconds": lambda found: 10 / found[0],
    "cost": lambda found: 100 * (1 / found[0] - 1),
    "least_cost": lambda found: 100 * (1 / max(found) - 1),
    "most_cost": lambda found: 100 * (1 / min(found) - 1),
}
"""Of the numbers that a selector finds; `cost`: what a step takes more, in percent, by a ratio of speeds;
`of_ten_seconds`: a time, by the ratio of the ten seconds that it may take."""


def output(experiment: Experiment, results: Path, line: str) -> Output:
    """`results`: where its study lies; `line`: the last that it printed."""
    return JsonOutput(line) if experiment.writes == "json" else StudyOutput(results)


def compared(claims: Claims, experiment: Experiment, found: Output) -> Iterator[Compared]:
    """Every number of the experiment's claims; what the run does not have is off, with the reason."""
    for claim in experiment.claims:
        if isinstance(claim, TextClaim):
            yield from _sentence(claim, claims.tolerance(claim), found)
            continue
        for at, label, column, text in claim.cells():
            where, tolerance = f"{claim.page}: {label}, {column}", claims.tolerance(claim, column)
            try:
                got = found.cell(claim, at, label, column, text)
            except (ValueError, KeyError) as error:
                yield Compared(where=where, printed=text, got=str(error), verdict="off", numbers=len(numbers(text)))
                continue
            yield compare(where, text, numbers(text), got, tolerance)


def _sentence(claim: TextClaim, tolerance: Tolerance, found: Output) -> Iterator[Compared]:
    where, shown = f"{claim.page}: {claim.got[0]}", claim.match().group(0)
    try:
        got = [value for name in claim.got for value in found.quantity(name)]
    except (ValueError, KeyError, OSError) as error:
        yield Compared(where=where, printed=shown, got=str(error), verdict="off", numbers=len(claim.got))
        return
    printed = claim.printed()
    for one, value in zip(printed, got, strict=False):
        yield compare(where, f"{one.text} in “{shown[:60]}”", [one], [value], tolerance)
    if len(got) < len(printed):
        yield Compared(
            where=where, printed=shown, got="too few numbers", verdict="off", numbers=len(printed) - len(got)
        )
