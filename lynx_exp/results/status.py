"""How far a sweep is: a table that is drawn anew while the sweep runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder
from lynx_exp.run.interrupt import Preempted
from lynx_exp.wording import counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from lynx_exp.store.survey import CellState, StudyState, Survey

HELP = "how far a sweep is: done, running, failed by kind, time left; live on a terminal"
DESCRIPTION = """\
Of every study: cells done, running, waiting, interrupted (Ctrl-C), preempted (terminated: the same
command continues them), lost (their process ended without a word) and failed; who works on what; what
failed, and why; files that were found damaged; and when it will be done, at the requests committed a
second since the sweep began. On a terminal drawn anew every second until all is done (Ctrl-C leaves; the
sweep goes on).

Exit codes: 0 nothing failed, 1 a cell failed, was lost or is not to be trusted, 2 bad input."""

EVERY_S = 1.0
ROOM = 12
"""Lines of a terminal that the tables need; what is left shows what failed."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument("--once", action="store_true", help="look once, also on a terminal")
    verb.add_argument("--json", action="store_true", help="one JSON object, once")


def run(args: argparse.Namespace) -> int:
    from lynx_exp.store.survey import Survey
    from lynx_exp.terminal import Terminal

    survey = Survey(root=args.folder)
    console = Terminal(emoji=False, soft_wrap=False)
    if args.json:
        studies = survey.read_states()
        print(json.dumps({"studies": [_json(study) for study in studies]}, indent=1))
    elif args.once or not console.is_terminal:
        studies = survey.read_states()
        plain = console if console.is_terminal else Terminal(emoji=False, width=100)
        plain.print(draw(studies, None), soft_wrap=True)
    else:
        studies = watch(survey, console)
    return FAILED if any(study.is_bad for study in studies) else 0


def watch(survey: Survey, console: Console, wait: Callable[[float], object] = sleep) -> list[StudyState]:
    """Draw until all cells are over, or Ctrl-C; what was seen last."""
    from rich.live import Live

    studies = survey.read_states()
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        try:
            while True:
                live.update(live_view(studies, max(3, console.height - ROOM)), refresh=True)
                if all(study.is_over for study in studies):
                    break
                wait(EVERY_S)
                studies = survey.read_states()
        except Preempted:
            raise
        except KeyboardInterrupt:
            pass
    return studies


def live_view(studies: list[StudyState], most: int | None) -> RenderableType:
    """What `draw` gives, and how it ends where nothing does so by itself."""
    from rich.console import Group

    if any(cell.holder is not None for study in studies for cell in study.cells):
        return draw(studies, most)
    return Group(draw(studies, most), _text("no process is at work here now; Ctrl-C ends this view", "dim"))


def draw(studies: list[StudyState], most: int | None) -> RenderableType:
    """`most`: lines of what failed; None: all."""
    from rich.console import Group

    return Group(_table(studies), *(line for study in studies for line in _details(study, most)))


def _table(studies: list[StudyState]) -> RenderableType:
    """A row a study; columns of states that occur."""
    from rich.table import Table
    from rich.text import Text

    from lynx_exp.store.survey import STATES

    shown = [state for state in STATES if state == "done" or any(study.counts[state] for study in studies)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("study", overflow="fold")
    for name in ("cells", *shown, "requests", "a second", "ETA"):
        table.add_column(name, justify="right", no_wrap=True)
    for study in studies:
        counts = [_count(state, study.counts[state]) for state in shown]
        committed, total = study.requests
        rate = "-" if study.rate is None else f"{study.rate:.3g}"
        pace = (f"{committed}/{total}", rate, _clock(study.eta_s))
        table.add_row(Text(str(study.path)), str(len(study.cells)), *counts, *pace)
    return table


_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "damaged": "red", "skipped": "yellow"}


def _count(state: str, count: int) -> Text:
    from rich.text import Text

    return Text(str(count), style=_COLOURS.get(state, "") if count else "dim")


def _details(study: StudyState, most: int | None) -> Iterator[Text]:
    """A line for each process at work, kind of failure, and cell that went wrong."""
    head = f"{study.path.name}: "
    working: dict[str, list[CellState]] = {}
    for cell in study.cells:
        if cell.holder is not None:
            working.setdefault(cell.holder, []).append(cell)
    for holder, cells in working.items():
        lanes = f"{sum(cell.lanes[0] for cell in cells)} of {counted(sum(cell.lanes[1] for cell in cells), 'lane')}"
        yield _text(f"{head}{holder}: {counted(len(cells), 'cell')}, {lanes}", "cyan")
    stopped = [cell.states for cell in study.cells if cell.holder is None and cell.states]
    if stopped:
        text = f"{counted(sum(stopped), 'lane')} of {counted(len(stopped), 'cell')} stopped under way"
        yield _text(f"{head}{text}: the same command goes on inside them", "cyan")
    if study.failures:
        yield _text(f"{head}failed: {', '.join(f'{kind} {count}' for kind, count in study.failures.items())}", "red")
    for line in study.damaged:
        yield _text(f"{head}damaged: {line}", "red")
    wrong = [line for cell in study.cells for line in _wrong(cell)]
    for line in wrong[:most]:
        yield _text(f"{head}{line}", "")
    if most is not None and len(wrong) > most:
        yield _text(f"{head}and {counted(len(wrong) - most, 'line')} more (--once shows all)", "dim")
    if study.others:
        yield _text(f"{head}{counted(study.others, 'cell')} more, which the latest sweeps did not ask for", "dim")


def _wrong(cell: CellState) -> Iterator[str]:
    tries = f" ({cell.attempt} attempts)" if cell.attempt > 1 else ""
    if cell.state in ("failed", "skipped"):
        yield f"{cell.state}: {cell.name}: {cell.kind or 'unknown'}: {cell.message or 'no message'}{tries}"
    elif cell.state == "damaged":
        yield f"damaged: {cell.name}: {cell.message}"
    elif cell.state == "lost":
        yield f"lost: {cell.name}: {cell.lanes[0]} of {counted(cell.lanes[1], 'lane')} kept{tries}"
    for reason in cell.invalid:
        yield f"invalid: {cell.name}: {reason}"
    for name in cell.corrupt:
        yield f"damaged: {cell.folder.name}/lanes/{name}: set aside, and the lane run again"


def _text(line: str, style: str) -> Text:
    from rich.text import Text

    return Text(line, style=style, overflow="fold")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _json(study: StudyState) -> dict[str, object]:
    committed, total = study.requests
    return {
        "study": str(study.path),
        "started": study.started.isoformat() if study.started is not None else None,
        "cells": len(study.cells),
        "counts": study.counts,
        "failures": study.failures,
        "others": study.others,
        "damaged": list(study.damaged),
        "requests": {"committed": committed, "total": total},
        "requests_per_second": study.rate,
        "eta_s": study.eta_s,
        "not_done": [_cell_json(cell) for cell in study.cells if cell.state != "done" or cell.invalid],
    }


def _cell_json(cell: CellState) -> dict[str, object]:
    return {
        "folder": Path(cell.folder).name,
        "name": cell.name,
        "state": cell.state,
        "kind": cell.kind,
        "message": cell.message,
        "invalid": list(cell.invalid),
        "attempt": cell.attempt,
        "holder": cell.holder,
        "lanes": {"committed": cell.lanes[0], "total": cell.lanes[1], "under_way": cell.states},
        "requests": {"committed": cell.requests[0], "total": cell.requests[1]},
        "corrupt": list(cell.corrupt),
    }
