"""The tables of docs/artifact.md, made from the list of claims and from what the pages print."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from benchmarks.artifact import record
from benchmarks.artifact.claims import Claim, Claims, Experiment, TableClaim, plain
from benchmarks.artifact.pages import ROOT
from benchmarks.artifact.record import Repetition
from benchmarks.artifact.schedule import schedule

PAGE = "docs/artifact.md"
CORES = 2
"""For which the page says how long all of it takes."""
BEGIN, END = "<!-- claims: made by `python -m benchmarks.artifact --page` -->", "<!-- /claims -->"


def with_claims(text: str, claims: Claims) -> str:
    """The page with its tables made anew; ValueError where their place is not marked."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE}: {BEGIN} and {END} must mark where the tables stand")
    return "\n".join([before + BEGIN, *lines(claims), END + after])


def write(claims: Claims) -> bool:
    """Make the page anew; whether it was another."""
    path = ROOT / PAGE
    text = path.read_text(encoding="utf-8")
    made = with_claims(text, claims)
    if made != text:
        path.write_text(made, encoding="utf-8")
    return made != text


def lines(claims: Claims, repetitions: Mapping[str, Repetition] | None = None) -> Iterator[str]:
    """The tables, with how each experiment came out last (`repetitions`: None for those of the repository)."""
    last = record.kept() if repetitions is None else repetitions
    run = [one for one in claims.experiments if one.is_run]
    total = schedule(claims, run, CORES).minutes
    numbers = sum(len(claim.claimed()) for one in run for claim in one.claims)
    pages = {claim.page for one in run for claim in one.claims}
    yield f"{numbers} numbers of {len(pages)} pages, {clock(total)} in all on {CORES} cores:"
    yield ""
    yield "| claim | command | expected | tolerance | time | last repeated |"
    yield "| --- | --- | --- | --- | --- | --- |"
    yield from (_row(claims, one, last.get(one.name)) for one in run)
    yield ""
    if last:
        yield "The last repetition counts numbers, ends of intervals included. It was made on:"
        yield ""
        yield from (f"- {where}" for where in dict.fromkeys(map(_where, last.values())))
        yield ""
    yield "Not run by `make artifact`:"
    yield ""
    yield "| claim | command | expected | why not | time |"
    yield "| --- | --- | --- | --- | --- |"
    for one in claims.experiments:
        if not one.is_run:
            yield f"| {_claim(one)} | {_code(one.command)} | {_expected(one)} | {one.note} | {clock(one.minutes)} |"
    yield ""
    yield "What a tolerance allows, besides the last digit that is printed:"
    yield ""
    yield "| kind | tolerance | |"
    yield "| --- | --- | --- |"
    yield from (f"| {kind} | {found} | {found.why} |" for kind, found in claims.tolerances.items())


def _where(one: Repetition) -> str:
    return f"{one.machine}; " + ", ".join(f"{name} {version}" for name, version in one.packages.items())


def clock(minutes: float) -> str:
    return f"{minutes:g} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _row(claims: Claims, one: Experiment, last: Repetition | None) -> str:
    tolerances = [_tolerances(claims, claim) for claim in one.claims]
    merged = ", ".join(dict.fromkeys(kind for kinds in tolerances for kind in kinds))
    came = f"{last.date}: {last}" if last else "-"
    return f"| {_claim(one)} | {_code(one.command)} | {_expected(one)} | {merged} | {clock(one.minutes)} | {came} |"


def _claim(one: Experiment) -> str:
    return f"**{one.name}**: {one.says}"


def _code(command: str) -> str:
    return f"`{command}`"


def _tolerances(claims: Claims, claim: Claim) -> list[str]:
    return [kind if str(claims.tolerances[kind]) != "as printed" else "as printed" for kind in claims.kinds(claim)]


def _expected(one: Experiment) -> str:
    """How many numbers of which pages, and one of them."""
    if not one.claims:
        return "-"
    count: Counter[str] = Counter()
    for claim in one.claims:
        count[claim.page] += len(claim.claimed())
    named = ", ".join(f"{number} of {_link(page)}" for page, number in count.items())
    return f"{named}; {_example(one)}"


def _example(one: Experiment) -> str:
    for claim in one.claims:
        if isinstance(claim, TableClaim):
            shown = [cell for _, label, _, cell in claim.cells() if one.shows in map(plain, label.split(" · "))]
            width = sum(column not in ("series", "subtask", "-") for column in claim.columns)
            if shown:
                return f"{one.shows}: {', '.join(cell.replace('**', '') for cell in shown[:width])}"
        else:
            return "“" + claim.match().group(0).replace("|", "·").replace("`", "").strip("· ") + "”"
    raise ValueError(f"{one.name}: shows: {one.shows!r} is no row of its tables")


def _link(page: str) -> str:
    """The site has the pages of docs alone."""
    name = PurePosixPath(page).name
    return f"[{name}]({os.path.relpath(page, 'docs')})" if page.startswith("docs/") else name
