"""Repeat what README and docs claim, and compare: the claims that a CPU can repeat.

Those without times run beside one another, one a core; those with times follow, each alone, on a machine that should be
idle.

    make artifact                                   all of them; stopped and typed again, it goes on
    python -m benchmarks.artifact --list            what there is, and what is there already
    python -m benchmarks.artifact --only demo       one experiment, or several
    python -m benchmarks.artifact --compare         run nothing; compare what earlier runs left
    python -m benchmarks.artifact --jobs 1          everything one after another
    python -m benchmarks.artifact --record          keep the verdicts in benchmarks/results/artifact.json
    python -m benchmarks.artifact --page            make the tables of docs/artifact.md anew

Ends with a table of claims, what was expected, what came, and the verdict: `equal` as printed, `within` the tolerance
of its kind (docs/artifact.md), or `off`. Exit codes: 0 nothing is off, 1 a claim is off or a command failed, 2 bad
input, 130 stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.artifact import page, record
from benchmarks.artifact.claims import Claims, Experiment, load
from benchmarks.artifact.pages import ROOT
from benchmarks.artifact.progress import Progress
from benchmarks.artifact.repeat import Processes, Ran, previous_run, repeat
from benchmarks.artifact.schedule import schedule
from benchmarks.artifact.verdicts import Outcome, judge, of_record, table
from lynx_exp.cores import usable_cores
from lynx_exp.wording import counted


def main(words: list[str] | None = None) -> int:
    given = arguments(words)
    claims = load()
    if given.page:
        print(f"{page.PAGE}: {'made anew' if page.write(claims) else 'is what the claims say'}")
        return 0
    chosen = [one for one in claims.experiments if not given.only or one.name in given.only]
    if given.list:
        for one in chosen:
            print(listed(one, given.out))
        return 0
    run = [one for one in chosen if one.is_run]
    outcomes = stored(claims, run, given.out) if given.compare else repeated(claims, run, given)
    if given.record:
        record.keep(outcomes)
    outcomes += [of_record(claims, one) for one in chosen if not one.is_run]
    print("", *table(outcomes), sep="\n")
    return int(any(outcome.is_off for outcome in outcomes))


def stored(claims: Claims, run: Sequence[Experiment], out: Path) -> list[Outcome]:
    """What earlier runs left, held against the pages."""
    outcomes = []
    for one in run:
        ran = previous_run(one, out / one.name)
        outcomes.append(judge(claims, ran) if ran else Outcome(experiment=one, compared=(), why="never run"))
    return outcomes


def repeated(claims: Claims, run: Sequence[Experiment], given: argparse.Namespace) -> list[Outcome]:
    """Run them, and hold each against its pages as it ends."""
    plan, progress = schedule(claims, run, given.jobs), Progress()
    if len(run) > 1:
        progress.say(f"{counted(len(run), 'experiment')}, about {page.clock(plan.minutes)}")

    def begin(one: Experiment, threads: int | None, processes: Processes) -> Ran:
        progress.say(f"{one.name}: {one.command}   about {page.clock(one.minutes)}")
        try:
            return repeat(
                one,
                given.out / one.name,
                again=given.again,
                on_line=progress.of(one.name),
                threads=threads,
                processes=processes,
            )
        finally:
            progress.end(one.name)

    outcomes = []
    for ran in plan.run(begin, usable_cores()):
        outcomes.append(judge(claims, ran))
        progress.say(outcomes[-1].line)
    return outcomes


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.artifact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these experiments")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--compare", action="store_true", help="run nothing")
    parser.add_argument("--again", action="store_true", help="run also what is there already")
    parser.add_argument("--jobs", type=int, metavar="N", default=usable_cores(), help="at once, of those without times")
    parser.add_argument("--record", action="store_true", help="keep the verdicts in the repository")
    parser.add_argument("--page", action="store_true", help=f"write {page.PAGE}")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/artifact", help="where runs are kept (runs/artifact)")
    given = parser.parse_args(words)
    known = [one.name for one in load().experiments]
    for name in given.only:
        if name not in known:
            parser.error(f"--only {name}: unknown; there are {', '.join(known)}")
    if given.record and given.compare:
        parser.error("--record with --compare: what older code left is no repetition of this code; leave one out")
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: must be at least 1")
    given.out = given.out.resolve()
    return given


def listed(one: Experiment, out: Path) -> str:
    """The line of `--list` for one experiment."""
    previous = previous_run(one, out / one.name) if one.is_run else None
    state = one.note or (f"run in {previous.seconds / 60:.1f} min" if previous else "not run")
    if one.command in state:  # the note has the command already
        state = state.partition(":")[0]
    return f"{one.name:<24} {page.clock(one.minutes):>8}  {state:<24} {one.command}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left (| head)
