"""What became of the cells of a run, and what is done with them at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from lynx_exp.run.interrupt import check_wrapped
from lynx_exp.run.planned_cell import Cell
from lynx_exp.run.progress_bar import bar
from lynx_exp.store.done import is_done
from lynx_exp.store.file_types import MetricEntry
from lynx_exp.store.reading import value_or_empty
from lynx_exp.store.survey import requests_kept
from lynx_exp.wording import counted


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one config."""

    state: Literal["done", "skipped", "failed", "planned"]
    folder: Path
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcomes in the order of the configs; configs that came to the same cell share one."""

    outcomes: list[Outcome]

    @property
    def failed(self) -> int:
        return len({outcome.folder for outcome in self.outcomes if outcome.state == "failed"})


def describe_committed(cells: Sequence[Cell]) -> str:
    """What a stop leaves: whole cells, and of the others what their journals hold."""
    done, total, found, begun = 0, 0, 0, 0
    for cell in cells:
        requests = sum(len(task.requests) for task in cell.tasks)
        total += requests
        if is_done(cell.folder):
            done, found = done + 1, found + requests
        else:
            found += requests_kept(cell.folder)
            begun += len(list((cell.folder / "lanes").glob("*.safetensors")))
    more = f", {counted(begun, 'unfinished lane')} saved" if begun else ""
    return f"{done} of {counted(len(cells), 'cell')} done, {found} of {counted(total, 'request')} kept{more}"


def headline_of(folder: Path) -> str:
    """What a finished cell found, for its line: the headline metric of each subtask, and active experts."""
    metrics = value_or_empty(folder / "metrics.json")
    parts = [f"{each['metric']} {_shown(each)}" for each in metrics.get("metrics", ()) if each["headline"]]
    active = metrics.get("active_experts")
    return ", ".join([*parts, *([] if active is None else [f"{active:.1f} experts"])])


def _shown(metric: MetricEntry) -> str:
    """Percent where it is a share; a corpus metric (BLEU) as it is."""
    value = metric["value"]
    if value is None:
        return "no number"
    share = not metric["corpus"] and 0 <= value <= 1
    return f"{100 * value:.1f} %" if share else f"{value:.1f}"


def print_outcomes(report: Report, cells: Sequence[Cell], console: Console) -> None:
    states = {outcome.folder: outcome.state for outcome in report.outcomes}
    counts = ", ".join(f"{list(states.values()).count(state)} {state}" for state in ("done", "skipped", "failed"))
    where = ", ".join(str(study) for study in dict.fromkeys(cell.study for cell in cells))
    many = counted(len(states), "cell")
    console.print(f"{many}: {counts}; in {where}", markup=False, highlight=False, soft_wrap=True)
    for folder, outcome in {
        outcome.folder: outcome for outcome in report.outcomes if outcome.state == "failed"
    }.items():
        console.print(f"failed: {folder}: {outcome.error}", markup=False, highlight=False, soft_wrap=True)
    for line in _next_commands(states, cells):
        console.print(line, markup=False, highlight=False, soft_wrap=True, style="dim")


def _next_commands(states: Mapping[Path, str], cells: Sequence[Cell]) -> list[str]:
    """What to type next: to see what was found, to look into what failed."""
    lines = []
    for study in dict.fromkeys(cell.study for cell in cells):
        own = [states[cell.folder] for cell in cells if cell.study == study]
        if any(state in ("done", "skipped") for state in own):
            lines.append(f"next: lynx-results table {study}; lynx-results report {study}")
        if alone := _without_vanilla(study, states, cells):
            lines.append(
                f"next: {alone} of them without vanilla on their plan, which `table` and `validate` compare with: "
                "the same command with policy=vanilla in place of its policy and parameters"
            )
        if "failed" in own:
            lines.append(
                f"next: lynx-results status {study}; the same command tries failed cells again (see max_failures)"
            )
    return lines


def _without_vanilla(study: Path, states: Mapping[Path, str], cells: Sequence[Cell]) -> int:
    """Finished cells of a policy that have no finished vanilla cell on their plan, of this run or an earlier one."""
    own = [cell for cell in cells if cell.study == study and states[cell.folder] in ("done", "skipped")]
    paired = {cell.pair_id for cell in own if cell.config.policy_name == "vanilla"}
    alone = [cell.pair_id for cell in own if cell.config.policy_name != "vanilla" and cell.pair_id not in paired]
    wanted = set(alone)
    if not alone:
        return 0
    for path in study.glob("*/cell.json"):
        info = value_or_empty(path)
        if info.get("policy") == "vanilla" and info.get("pair_id") in wanted and is_done(path.parent):
            paired.add(info["pair_id"])
    return sum(pair not in paired for pair in alone)


def run_then(cells: Sequence[Cell], console: Console) -> None:
    """Tables and figures of every study, as its configs ask. What goes wrong here is said, and costs no cell."""
    wanted = dict.fromkeys((cell.study, what) for cell in cells for what in cell.config.then)
    for study, what in wanted:
        try:
            import analysis

            if what == "table":
                analysis.print_table(study, console=console if console.is_terminal else None)
            else:
                files = analysis.write_figures(study, track=bar)
                console.print("figures:", *map(str, files), sep="\n  ", markup=False, highlight=False, soft_wrap=True)
        except Exception as error:
            check_wrapped(error)
            print(f"lynx-exp: warning: {what} of {study}: {type(error).__name__}: {error}", file=sys.stderr)
