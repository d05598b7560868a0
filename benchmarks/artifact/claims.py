"""Reads `claims.yaml`, which lists the published numbers: their page, the command that repeats them, and the tolerance.

`repeat` runs the commands, `measured` reads their numbers, and `compare` decides whether these agree with the page.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.artifact import pages
from benchmarks.artifact.compare import Tolerance
from benchmarks.artifact.pages import Printed

FILE = Path(__file__).with_name("claims.yaml")
NEEDS = ("cpu", "gpu", "vllm", "hours", "other")
"""Where a claim can be repeated: by `make artifact`; or not by it, `note` says how."""
SKIPPED = ("series", "subtask", "-")
"""Columns that identify a row, or have no number to repeat."""


@dataclass(frozen=True, kw_only=True)
class TableClaim:
    """All numbers of a table."""

    page: str
    head: tuple[str, ...]
    columns: tuple[str, ...]
    """Of each heading: `series`, `subtask`, `-`, or QUANTITY or QUANTITY@SETTING."""
    at: int = 0
    """Of several tables with these headings, which."""
    batch: int = 16
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Of quantities that are not what tolerances are named after."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """What a row's label stands for, where it is no name of a setting or subtask."""
    leave_out: tuple[str, ...] = ()
    """Labels of rows that another experiment repeats."""
    only: tuple[str, ...] = ()

    def table(self) -> pages.Table:
        return pages.table(self.page, self.head, self.at)

    def cells(self) -> list[tuple[int, str, str, str]]:
        """(place of the row, its label, column, text) of each cell that is claimed; a blank label is the one above."""
        table, found, last = self.table(), [], [""] * len(self.head)
        for at, row in enumerate(table.rows):
            last = [cell or before for cell, before in zip(row, last, strict=True)]
            label = " · ".join(cell for cell, column in zip(last, self.columns, strict=True) if column in SKIPPED[:2])
            first = plain(label.partition(" · ")[0])
            if first in self.leave_out or (self.only and first not in self.only):
                continue
            found += [
                (at, label, column, cell)
                for cell, column in zip(row, self.columns, strict=True)
                if column not in SKIPPED and pages.numbers(cell)
            ]
        return found

    def claimed(self) -> list[str]:
        return [one.text for *_, cell in self.cells() for one in pages.numbers(cell)]


@dataclass(frozen=True, kw_only=True)
class TextClaim:
    """Numbers of a sentence, or of a cell of a table that is one."""

    page: str
    text: str
    """A pattern that occurs once; its groups are the numbers."""
    got: tuple[str, ...]
    """Of each group where to find it (`measured`)."""
    kind: str

    def match(self) -> re.Match[str]:
        content = re.sub(r"\s+", " ", pages.read(self.page))
        found = list(re.finditer(self.text, content))
        if len(found) != 1:
            raise ValueError(f"{self.page}: {len(found)} sentences like {self.text!r}, and there must be one")
        return found[0]

    def printed(self) -> list[Printed]:
        return [Printed(text=text.rstrip(".")) for text in self.match().groups()]

    def claimed(self) -> list[str]:
        return [one.text for one in self.printed()]


Claim = TableClaim | TextClaim


@dataclass(frozen=True, kw_only=True)
class Experiment:
    name: str
    says: str
    command: str
    minutes: float
    """On two idle CPU cores."""
    writes: str
    """`study` with a folder of results, or `json`: the last line."""
    claims: tuple[Claim, ...]
    needs: str = "cpu"
    note: str = ""
    record: str = ""
    """Of one that is not run here: a file of results in the repository, which pages are held against."""
    shows: str = ""
    """Of a table's rows the one that the page of claims gives as an example."""

    @property
    def is_run(self) -> bool:
        return self.needs == "cpu"


@dataclass(frozen=True, kw_only=True)
class Claims:
    tolerances: Mapping[str, Tolerance]
    experiments: tuple[Experiment, ...]
    """Cheap ones first."""
    given: Mapping[str, Sequence[str]]
    """For each page, numbers that need no claim: sizes, settings, goals, and those that follow from a claimed one."""

    def uncovered(self, page: str) -> list[str]:
        """The numbers of a page that neither a claim nor `given` accounts for, in sentences and unclaimed tables."""
        own = [claim for one in self.experiments for claim in one.claims if claim.page == page]
        whole = {(claim.head, claim.at) for claim in own if isinstance(claim, TableClaim)}
        known = {bare(text) for claim in own for text in claim.claimed()} | {
            bare(str(n)) for n in self.given.get(page, ())
        }
        found, seen = list(pages.sentence_numbers(pages.read(page))), Counter[tuple[str, ...]]()
        for table in pages.tables(pages.read(page)):
            if (table.head, seen[table.head]) not in whole:
                found += [one.text for row in table.rows for cell in row for one in pages.numbers(pages.unmarked(cell))]
            seen[table.head] += 1
        return [text for text in dict.fromkeys(found) if bare(text) not in known]

    def tolerance(self, claim: Claim, column: str = "") -> Tolerance:
        return self.tolerances[kind_of(claim, column)]

    def kinds(self, claim: Claim) -> list[str]:
        """The kinds of tolerance of its numbers, each once."""
        columns = [column for *_, column, _ in claim.cells()] if isinstance(claim, TableClaim) else [""]
        return list(dict.fromkeys(kind_of(claim, column) for column in columns))

    def is_timed(self, one: Experiment) -> bool:
        """Whether an experiment has times among its numbers, and needs the machine for itself."""
        return any(self.tolerances[kind].is_time for claim in one.claims for kind in self.kinds(claim))


def kind_of(claim: Claim, column: str) -> str:
    if isinstance(claim, TextClaim):
        return claim.kind
    quantity = column.partition("@")[0]
    return claim.kinds.get(quantity, quantity)


def bare(text: str) -> str:
    """A number without its sign: a loss of 2.7 points is -2.7."""
    return text.lstrip("+-±").replace(",", "")


def plain(label: str) -> str:
    """A label of a table without markup and remarks, such as `**coverage**` or `no_drop (control)`."""
    return re.sub(r" \((?:control|BLEU)\)$", "", label.replace("**", "").strip())


@cache
def load(file: Path = FILE) -> Claims:
    """Read the claims; ValueError for an entry with an unknown or a missing field."""
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    experiments = [_experiment(name, entry) for name, entry in raw["experiments"].items()]
    return Claims(
        tolerances={kind: _made(Tolerance, kind, entry) for kind, entry in raw["tolerances"].items()},
        experiments=tuple(sorted(experiments, key=lambda one: one.minutes)),
        given={page: tuple(str(number) for number in numbers) for page, numbers in raw["given"].items()},
    )


def _experiment(name: str, entry: Mapping[str, Any]) -> Experiment:
    claims: list[Claim] = []
    for one in entry.get("tables", ()):
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in one.items()}
        claims.append(_made(TableClaim, name, fields))
    for one in entry.get("sentences", ()):
        claims.append(_made(TextClaim, name, one | {"got": tuple(one["got"])}))
    rest = {key: value for key, value in entry.items() if key not in ("tables", "sentences")}
    made: Experiment = _made(Experiment, name, rest | {"name": name, "claims": tuple(claims)})
    if made.claims and not made.is_run and not made.record and made.needs == "gpu":
        raise ValueError(f"{FILE.name}: {name}: claims of needs: gpu are held against a record: of the repository")
    if made.needs not in NEEDS:
        raise ValueError(f"{FILE.name}: {name}: needs: {made.needs!r} is none of {', '.join(NEEDS)}")
    return made


def _made(kind: type, name: str, entry: Mapping[str, Any]) -> Any:
    try:
        return kind(**entry)
    except TypeError as error:
        raise ValueError(f"{FILE.name}: {name}: {error}") from error
