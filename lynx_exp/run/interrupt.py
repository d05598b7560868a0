"""Signals: Ctrl-C stops a run, SIGTERM asks that it be queued again; what is committed stays."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Ctrl-C between two commits; `str()` is the line to show."""


class Preempted(KeyboardInterrupt):
    """SIGTERM: the machine is wanted by somebody else. `str()` is the line to show."""


_signals: list[int] = []
"""Signals that came. Their exception may fall into code that swallows all exceptions, an import hook for one."""


def check() -> None:
    """Raise again what was swallowed."""
    if _signals:
        raise Preempted


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, unless somebody handles it already, as submitit does in its jobs: it has a signal
    of its own, and requeues. A command enters this before it imports what takes long. Only the main thread may set
    handlers; elsewhere nothing changes."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        _signals.append(number)
        raise Preempted

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _signals.clear()


def with_message(stop: KeyboardInterrupt, kept: str) -> KeyboardInterrupt:
    """What to raise in place of `stop`; `kept` says what is not lost."""
    if isinstance(stop, Preempted):
        return Preempted(f"terminated: {kept}; queue the same command again to continue")
    return Interrupted(f"interrupted: {kept}; run the same command to continue")
