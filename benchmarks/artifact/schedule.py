"""Which experiments run beside one another: those without times do, one a core; those with times follow alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from benchmarks.artifact.claims import Claims, Experiment
from benchmarks.artifact.repeat import Processes, Ran

Run = Callable[[Experiment, int | None, Processes], Ran]
"""Runs one experiment with so many threads (None: as many as it likes), among processes that can be stopped."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    together: tuple[Experiment, ...]
    """Without times: the longest first, because the others fit beside it, then the shortest."""
    alone: tuple[Experiment, ...]
    """With times, the shortest first."""
    jobs: int
    """How many of `together` run at once."""

    @property
    def minutes(self) -> float:
        """What all of it takes, by the minutes that the list of claims gives."""
        ends = [0.0] * self.jobs
        for one in self.together:
            heapq.heapreplace(ends, ends[0] + one.minutes)
        return max(ends) + sum(one.minutes for one in self.alone)

    def run(self, run: Run, cores: int) -> Iterator[Ran]:
        """Run everything, and give each experiment as it ends. Stopped, it stops what runs and begins nothing more."""
        processes = Processes()
        threads = max(1, cores // self.jobs) if self.jobs > 1 else None
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(run, one, threads, processes) for one in self.together]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                processes.stop()
                raise
        for one in self.alone:
            yield run(one, None, processes)


def schedule(claims: Claims, experiments: Sequence[Experiment], jobs: int) -> Schedule:
    """Split experiments, which come with the shortest first, into those that run together and those that run alone."""
    together = [one for one in experiments if not claims.is_timed(one)]
    together = together[-1:] + together[:-1]
    return Schedule(
        together=tuple(together),
        alone=tuple(one for one in experiments if claims.is_timed(one)),
        jobs=max(1, min(jobs, len(together))),
    )
