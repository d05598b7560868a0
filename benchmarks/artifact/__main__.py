"""Repeat what README and docs claim, and compare: the claims that a CPU can repeat, cheapest first.

    make artifact                                   all of them; stopped and typed again, it goes on
    python -m benchmarks.artifact --list            what there is, and what is there already
    python -m benchmarks.artifact --only demo       one experiment, or several
    python -m benchmarks.artifact --compare         run nothing; compare what earlier runs left
    python -m benchmarks.artifact --page            make the tables of docs/artifact.md anew

Ends with a table of claims, what was expected, what came, and the verdict: `equal` as printed, `within` the tolerance
of its kind (docs/artifact.md), or `off`. Exit codes: 0 nothing is off, 1 a claim is off or a command failed, 2 bad
input, 130 stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.artifact import page
from benchmarks.artifact.claims import Experiment, load
from benchmarks.artifact.pages import ROOT
from benchmarks.artifact.repeat import previous_run, repeat
from benchmarks.artifact.verdicts import Outcome, judge, of_record, table


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
    outcomes, left = [], sum(one.minutes for one in run)
    for at, one in enumerate(run, 1):
        ran = previous_run(one, given.out / one.name) if given.compare else None
        if given.compare and ran is None:
            outcomes.append(Outcome(experiment=one, compared=(), why="never run"))
            continue
        if ran is None:
            print(
                f"{at}/{len(run)} {one.name}: {one.command}   about {page.clock(one.minutes)}, {page.clock(left)} left"
            )
            ran = repeat(one, given.out / one.name, again=given.again, on_line=progress())
            sys.stdout.write("\r\033[K" if sys.stdout.isatty() else "")
        left -= one.minutes
        outcomes.append(judge(claims, ran))
        print(outcomes[-1].line, flush=True)
    outcomes += [of_record(claims, one) for one in chosen if not one.is_run]
    print("", *table(outcomes), sep="\n")
    return int(any(outcome.is_off for outcome in outcomes))


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.artifact", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these experiments")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--compare", action="store_true", help="run nothing")
    parser.add_argument("--again", action="store_true", help="run also what is there already")
    parser.add_argument("--page", action="store_true", help=f"write {page.PAGE}")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/artifact", help="where runs are kept (runs/artifact)")
    given = parser.parse_args(words)
    known = [one.name for one in load().experiments]
    for name in given.only:
        if name not in known:
            parser.error(f"--only {name}: unknown; there are {', '.join(known)}")
    given.out = given.out.resolve()
    return given


def listed(one: Experiment, out: Path) -> str:
    """The line of `--list` for one experiment."""
    previous = previous_run(one, out / one.name) if one.is_run else None
    state = one.note or (f"run in {previous.seconds / 60:.1f} min" if previous else "not run")
    if one.command in state:  # the note has the command already
        state = state.partition(":")[0]
    return f"{one.name:<24} {page.clock(one.minutes):>8}  {state:<24} {one.command}"


def progress(every_s: float = 20.0) -> Callable[[str], None]:
    """A callback that shows a command's output: the latest line on a terminal, else a line every `every_s` seconds."""
    begun = last = time.monotonic()

    def show(line: str) -> None:
        nonlocal last
        now = time.monotonic()
        clock = f"{(now - begun) / 60:.1f} min"
        if sys.stdout.isatty():
            sys.stdout.write(f"\r\033[K  {clock}  {line[:90]}")
            sys.stdout.flush()
        elif now - last > every_s:
            last = now
            print(f"  {clock}  {line[:110]}", flush=True)

    return show


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
