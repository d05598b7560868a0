"""A bar with the time left, for what comes after the cells and takes long: on stderr, and only on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def bar(names: Sequence[str]) -> Iterable[str]:
    """`names` one by one, the one at work shown beside the bar; gone when all are done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(emoji=False, stderr=True)
    done = TextColumn("{task.completed}/{task.total}")
    shown = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    with Progress(*shown, console=console, transient=True, disable=not console.is_terminal) as on:
        task = on.add_task("", total=len(names))
        for name in names:
            on.update(task, description=name)
            yield name
            on.advance(task)
