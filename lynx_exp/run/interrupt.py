"""Signals: Ctrl-C stops a run, SIGTERM asks that it be queued again; what is committed stays."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread, main_thread


class Interrupted(KeyboardInterrupt):
    """Ctrl-C between two commits; `str()` is the line to show."""


class Preempted(KeyboardInterrupt):
    """SIGTERM: the machine is wanted by somebody else. `str()` is the line to show."""


_signals: list[int] = []
"""Signals that came. Their exception may fall into code that swallows all exceptions, an import hook for one."""
_asked: Event | None = None
"""Set by the first signal, which then waits for `check`; None: no signal waits."""
PATIENCE_S = 20.0
"""That a signal waits at most: batch systems kill 30 s after SIGTERM."""


def is_stopping() -> bool:
    """Whether a signal came."""
    return bool(_signals)


def check() -> None:
    """Raise again what was swallowed, or what was to wait."""
    if _signals:
        raise KeyboardInterrupt if _signals[-1] == signal.SIGINT else Preempted


def check_wrapped(error: BaseException) -> None:
    """As `check`, and raise the stop that `error` was made of. Python 3.11 turns what is raised while a class is made,
    as in an import, into a RuntimeError; libraries do so with much."""
    check()
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        if isinstance(inner, KeyboardInterrupt):
            raise inner from None
        seen.add(id(inner))
        inner = inner.__cause__ or inner.__context__


def _came(number: int) -> bool:
    """A signal is noted; whether it stops at once."""
    _signals.append(number)
    if _asked is None or len(_signals) > 1:
        return True
    _asked.set()
    return False


@contextmanager
def waiting() -> Iterator[None]:
    """Inside, the first signal waits for `check`, for the end of the block or for `PATIENCE_S`; the second stops at
    once. Where somebody else handles a signal, nothing changes for it."""
    global _asked

    def stop(number: int, _frame: object) -> None:
        if _came(number):
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    try:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread
        before = None
    _asked, over = Event(), Event()
    # begun here, and not by the signal, which may come while this process begins a thread of its own
    watch = Thread(target=_insist, args=(_asked, over), daemon=True)
    watch.start()
    try:
        yield
        check()
    finally:
        over.set()
        _asked.set()
        watch.join()
        _asked = None
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)
        _signals[:] = [number for number in _signals if number != signal.SIGINT]


def _insist(asked: Event, over: Event) -> None:
    """A thread's: once a signal has waited for long it comes a second time."""
    asked.wait()
    if not over.wait(PATIENCE_S):
        signal.pthread_kill(main_thread().ident or 0, _signals[0])  # a main thread that blocks wakes up


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, unless somebody handles it already, as submitit does in its jobs: it has a signal
    of its own, and requeues. A command enters this before it imports what takes long. Only the main thread may set
    handlers; elsewhere nothing changes."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        if _came(number):
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
