"""What `lynx-prepare` says while it works: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from rich.console import Console

from lynx_exp.run.run_progress import clock

LINE_EVERY = 100
"""Steps of training between two lines where there is no terminal for a bar,"""
SECONDS_EVERY = 10.0
"""and seconds of calibrating."""


def train_callback(
    console: Console, steps: int, update: Callable[[int, str], None]
) -> Callable[[int, dict[str, float]], None]:
    """A callback for `train`: losses of each task in the bar, or a line now and then."""
    first: list[tuple[int, float]] = []

    def on_step(step: int, losses: dict[str, float]) -> None:
        first.append((step, monotonic())) if not first else None
        text = " ".join(
            f"{task.removeprefix('mini_')} {loss:.3f}" for task, loss in losses.items() if not math.isnan(loss)
        )
        update(step, text)
        if not console.is_terminal and (step % LINE_EVERY == 0 or step == steps):
            begun, since = first[0]
            left = (monotonic() - since) / (step - begun) * (steps - step) if step > begun else None
            console.print(f"step {step}/{steps}: loss {text}, ETA {clock(left)}", highlight=False)

    return on_step


def calibrate_callback(console: Console, update: Callable[..., None]) -> Callable[[int, int], None]:
    """A callback for `calibrate`: the share done in the bar, or a line now and then."""
    first: list[tuple[int, float]] = []
    said = monotonic()

    def on_step(done: int, total: int) -> None:
        nonlocal said
        update(completed=done, total=total)
        now = monotonic()
        if not first:
            first.append((done, now))
        elif not console.is_terminal and now - said > SECONDS_EVERY:
            said = now
            left = (now - first[0][1]) / (done - first[0][0]) * (total - done)
            console.print(f"calibrating: {done / total:.0%}, ETA {clock(left)}", highlight=False)

    return on_step
