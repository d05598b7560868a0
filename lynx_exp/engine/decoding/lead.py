"""Whether the next step is launched before the tokens of the last one have been read.

If it is, the device never waits for the host; but the host sees an end (EOS, a stop string) one step late, and the step
that its lane has done meanwhile counts for nothing: it is done again, with those who are there then. If it is not, the
device idles while the host looks at the tokens. Either way every lane does the same steps; which is faster depends on
how often requests end, how many rows a lane has, and how long a step takes: so both costs are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

_KEPT = 0.98
"""Share of what is known that a new step leaves: some fifty steps count."""


class LaunchAhead:
    """Told of each launch and each reading; `pays_off` says whether to launch first."""

    def __init__(self, always: bool | None = None, clock: Callable[[], float] = perf_counter) -> None:
        """`always`: True or False whatever it costs; None: as it pays."""
        self._always, self._clock = always, clock
        self._ends = self._rows = self._host_s = self._all_s = 0.0
        self._read_at: float | None = None

    def read(self, rows: int, ends: int) -> None:
        """The tokens of a step are there: of so many live rows, for which so many turned out to be the last."""
        now = self._clock()
        if self._read_at is not None:
            self._all_s = _KEPT * self._all_s + now - self._read_at
        self._ends, self._rows = _KEPT * self._ends + ends, _KEPT * self._rows + rows
        self._read_at = now

    def launched(self) -> None:
        """A step goes to the device: since the last reading the host has worked."""
        if self._read_at is not None:
            self._host_s = _KEPT * self._host_s + self._clock() - self._read_at

    def interrupted(self) -> None:
        """Prompts have gone through the model: what time passes until the next reading says nothing."""
        self._read_at = None

    def pays_off(self, live: Sequence[int], will_end: bool) -> bool:
        """`live`: rows of each lane; `will_end`: whether a row has its last token in the step on its way, as it has
        in its longest response: its lane's next step would surely be in vain."""
        if will_end or self._always is not None:
            return bool(self._always) and not will_end
        if not self._rows or not self._all_s or not sum(live):
            return False
        in_vain = self._ends / self._rows * sum(rows * rows for rows in live) / sum(live)
        return in_vain < self._host_s / self._all_s
