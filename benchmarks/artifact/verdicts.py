"""The outcome of each experiment, as a line and in the final table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.artifact.claims import Claims, Experiment
from benchmarks.artifact.compare import Compared
from benchmarks.artifact.measured import compared, output
from benchmarks.artifact.pages import ROOT, read
from benchmarks.artifact.repeat import Ran
from lynx_exp.wording import counted, first_line

SHOWN = 44
"""Maximum width of a cell of the final table, in characters."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    experiment: Experiment
    compared: tuple[Compared, ...]
    why: str = ""
    """Why nothing was compared; empty if it was."""
    failed: bool = False
    ran: Ran | None = None
    """The run that was compared; None if nothing was run."""

    @property
    def is_off(self) -> bool:
        return self.failed or any(one.verdict == "off" for one in self.compared)

    @property
    def counts(self) -> Counter[str]:
        """How many numbers of each verdict."""
        found = Counter({"equal": 0, "within": 0, "off": 0})
        for one in self.compared:
            found[one.verdict] += one.numbers
        return found

    @property
    def line(self) -> str:
        if not self.compared:
            return f"  {self.experiment.name}: {self.why}"
        found = self.counts
        counts = ", ".join(f"{count} {verdict}" for verdict, count in found.items() if count)
        total = counted(sum(found.values()), "number")
        how = f"in {self.ran.seconds / 60:.1f} min" if self.ran else f"by {self.experiment.record}; {self.why}"
        return f"  {self.experiment.name}: {total}: {counts}, {how}"


def of_record(claims: Claims, one: Experiment) -> Outcome:
    """Its pages against the file of results in the repository: nothing is run."""
    if not (one.record and one.claims):
        return Outcome(experiment=one, compared=(), why=one.note)
    try:
        found = output(one, ROOT, read(one.record))
    except (ValueError, OSError) as error:
        return Outcome(experiment=one, compared=(), why=f"{one.record}: {first_line(error)}", failed=True)
    return Outcome(experiment=one, compared=tuple(compared(claims, one, found)), why=one.note)


def judge(claims: Claims, ran: Ran) -> Outcome:
    one = ran.experiment
    if ran.status != 0:
        why = f"the command ended with {ran.status}: {ran.last}; {ran.folder / 'log.txt'}"
        return Outcome(experiment=one, compared=(), why=why, failed=True, ran=ran)
    try:
        found = output(one, ran.results, ran.last)
    except (ValueError, OSError) as error:
        why = f"its output cannot be read: {first_line(error)}"
        return Outcome(experiment=one, compared=(), why=why, failed=True, ran=ran)
    return Outcome(experiment=one, compared=tuple(compared(claims, one, found)), ran=ran)


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """(claim, expected, got, verdict): every number that is off, and of the others the first within and the first."""
    yield f"{'claim':<{SHOWN}} {'expected':<26} {'got':<26} verdict"
    for outcome in outcomes:
        if not outcome.compared:
            state = "FAILED" if outcome.failed else "not run"
            yield f"{outcome.experiment.name:<{SHOWN}} {outcome.why[:52]:<53} {state}"
            continue
        off = [one for one in outcome.compared if one.verdict == "off"]
        within = [one for one in outcome.compared if one.verdict == "within"]
        equal = [one for one in outcome.compared if one.verdict == "equal"]
        for one in (*off, *within[:1], *(equal[:1] if not within else [])):
            where = f"{outcome.experiment.name}: {one.where.partition(': ')[2] or one.where}"
            verdict = "OFF" if one.verdict == "off" else one.verdict
            yield f"{where[:SHOWN]:<{SHOWN}} {one.printed[:26]:<26} {one.got[:26]:<26} {verdict}"
        yield outcome.line
    run = [outcome for outcome in outcomes if outcome.compared or outcome.failed]
    bad = [outcome.experiment.name for outcome in run if outcome.is_off]
    end = f"off: {', '.join(bad)}" if bad else "nothing is off"
    yield f"{counted(len(run), 'experiment')} run, {len(outcomes) - len(run)} not: {end}"
