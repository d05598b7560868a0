"""Finds the numbers that README and docs print, in cells of tables and in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(
    r"(?<![\w./])(?:[+±-](?=\d))?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w/]|\.\w)|(?<![\w./])\d+(?:\.\d+)?(?=x\b)"
)
"""`-3.1`, `1,281`, `5.2x`; not the digits of a name (`fig2`, `Qwen3-30B`)."""
_FENCE = re.compile(r"^```.*?^```$|<!--.*?-->", re.MULTILINE | re.DOTALL)
_CODE_OR_LINK = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]+>")


@dataclass(frozen=True, kw_only=True)
class Printed:
    text: str

    @property
    def value(self) -> float:
        return float(self.text.replace(",", "").replace("±", ""))

    @property
    def half_step(self) -> float:
        """Half of the last digit that is printed."""
        return 0.5 * 10.0 ** -len(self.text.partition(".")[2])


def numbers(text: str) -> list[Printed]:
    return [Printed(text=found) for found in NUMBER.findall(text)]


@dataclass(frozen=True, kw_only=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def is_bold(self) -> list[bool]:
        """Of each row, whether its first cell alone is filled: a heading inside the table."""
        return [row[0].startswith("**") and not any(row[1:]) for row in self.rows]


def read(page: str) -> str:
    """Of a path below the root."""
    return (ROOT / page).read_text(encoding="utf-8")


def tables(text: str) -> list[Table]:
    found: list[list[tuple[str, ...]]] = [[]]
    for line in _FENCE.sub("", text).splitlines():
        if line.startswith("|"):
            found[-1].append(tuple(cell.strip() for cell in line.strip().strip("|").split("|")))
        elif found[-1]:
            found.append([])
    return [Table(head=rows[0], rows=tuple(rows[2:])) for rows in found if len(rows) > 2]


def table(page: str, head: Sequence[str], at: int = 0) -> Table:
    """The `at`-th table of a page with these headings; ValueError where there is none."""
    same = [one for one in tables(read(page)) if list(one.head) == list(head)]
    if at >= len(same):
        raise ValueError(f"{page}: no table {at + 1} with the headings {' | '.join(head)}")
    return same[at]


def unmarked(text: str) -> str:
    """A text without inline code, link targets and HTML tags."""
    return _CODE_OR_LINK.sub(" ", text)


def sentence_numbers(text: str) -> Iterator[str]:
    """The numbers in the sentences of a page, without those in tables, headings, code and links."""
    for line in unmarked(_FENCE.sub("", text)).splitlines():
        if not line.startswith(("|", "#")):
            yield from NUMBER.findall(line)
