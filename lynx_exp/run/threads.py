"""CPU threads of the model: as many as cores are free, looked at again while a run goes on.

PyTorch's OpenMP threads meet at a barrier after each operation, thousands of times a second. Where something else takes
a core away from one of them, all others spin until it is back: a run with a thread more than there are free cores was
seen to take twenty times as long as one with a single thread. So the run looks at what the machine does and leaves busy
cores to others. On a CPU the bytes of a record do not depend on the number of threads (a test compares them); times do,
so that it stays as it is while a cell is timed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import monotonic, sleep

from lynx_exp.cores import usable_cores

SPIN = "20000"
"""Rounds that an idle OpenMP thread spins before it sleeps, some tens of microseconds: longer than the gap between two
operations of a step, and a hundredth of GNU OpenMP's own choice, which on a busy machine is spent at every barrier."""

LOOKS = 5
"""Of these the median counts: one look is a single instant."""
EVERY_S = 1.0
FIRST_LOOKS_S = 0.01
SETTLE_S = 0.001
"""Before a look: longer than an idle OpenMP thread of our own spins, which the kernel still counts as running while its
state, read a moment later, no longer says so."""


def set_spin(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound how long OpenMP threads spin, unless the user says. Works only before PyTorch is imported."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPIN


def busy_cores(proc: Path = Path("/proc")) -> float | None:
    """Threads of other processes that run or wait for a core just now; None where the kernel does not tell.

    Read by hand: psutil has averages over a minute and more, and no states of single threads.
    """
    sleep(SETTLE_S)
    try:
        running = int((proc / "loadavg").read_text().split()[3].partition("/")[0])
        own = 0
        for thread in (proc / "self" / "task").iterdir():
            with suppress(OSError):  # it has just ended
                own += (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (OSError, ValueError, IndexError):
        return None
    return max(0.0, running - own)


class OtherLoad:
    """What else wanted to run while something was timed: a look now and then, of which the median counts."""

    def __init__(
        self,
        look: Callable[[], float | None] = busy_cores,
        clock: Callable[[], float] = monotonic,
        every_s: float = 0.2,
    ) -> None:
        self._look, self._clock, self._every_s = look, clock, every_s
        self._looks: list[float] = []
        self._last = float("-inf")

    def look(self) -> None:
        """Call it between steps that are timed."""
        if self._clock() - self._last >= self._every_s:
            self._last, seen = self._clock(), self._look()
            if seen is not None:
                self._looks.append(seen)

    def median(self) -> float | None:
        """Threads; None where the system does not say."""
        return median(self._looks) if self._looks else None


class ThreadChooser:
    """Looks at the machine, at most once in `EVERY_S`, and calls `apply` with another number of threads when that fits
    better. `most` is never exceeded."""

    def __init__(
        self,
        most: int,
        apply: Callable[[int], None],
        say: Callable[[str], None],
        *,
        cores: int | None = None,
        look: Callable[[], float | None] = busy_cores,
        clock: Callable[[], float] = monotonic,
        pause: Callable[[float], None] = sleep,
    ) -> None:
        self.most, self.threads = most, most
        self._apply, self._say, self._look, self._clock, self._pause = apply, say, look, clock, pause
        self._cores = usable_cores() if cores is None else cores
        self._looks: deque[float] = deque(maxlen=LOOKS)
        self._last = float("-inf")
        self._fixed = 0

    def start(self) -> None:
        """Before work begins: look `LOOKS` times, apply and decide."""
        self._apply(self.threads)  # somebody else may have set another number
        self._looks.clear()
        for _ in range(LOOKS):
            if not self._note():
                return
            self._pause(FIRST_LOOKS_S)
        self._decide()

    def watch(self) -> None:
        """Call it as often as you like, between steps."""
        if self._fixed or self._clock() - self._last < EVERY_S:
            return
        if self._note():
            self._decide()

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """No change inside, as while steps are timed."""
        self._fixed += 1
        try:
            yield
        finally:
            self._fixed -= 1

    def _note(self) -> bool:
        self._last = self._clock()
        busy = self._look()
        if busy is not None:
            self._looks.append(busy)
        return busy is not None

    def _decide(self) -> None:
        if len(self._looks) < LOOKS:
            return
        busy = median(self._looks)
        wanted = min(self.most, max(1, int(self._cores - busy)))
        if wanted == self.threads:
            return
        self._looks.clear()  # a change shows in the next looks
        before, self.threads = self.threads, wanted
        self._apply(wanted)
        if wanted < before:
            self._say(
                f"this machine is busy ({busy:.0f} other threads want its {self._cores} cores): {_count(wanted)} "
                "instead of " + str(before) + "; what is timed now is marked as such"
            )
        else:
            self._say(f"cores are free again: {_count(wanted)}")


def _count(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads != 1 else "")
