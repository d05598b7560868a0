"""Pieces of HTML that several sections are made of. What they are given is escaped here, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from analysis.page.text import escape


def definitions(pairs: Iterable[tuple[str, Sequence[object]]]) -> str:
    """A list of names, each with its values; a name without values is left out."""
    items = [
        f"<div><dt>{escape(name)}</dt>{''.join(f'<dd>{escape(value)}</dd>' for value in values)}</div>"
        for name, values in pairs
        if values
    ]
    return f'<dl class="facts">{"".join(items)}</dl>'


def table(rows: Sequence[Mapping[str, object]], *, numbers: Sequence[str] = ()) -> str:
    """Columns are the keys of the first row; the first column heads its row."""
    if not rows:
        return ""
    names = list(rows[0])
    align = {name: ' class="number"' if name in numbers else "" for name in names}
    head = "".join(f'<th scope="col"{align[name]}>{escape(name)}</th>' for name in names)
    body = []
    for row in rows:
        first, *rest = names
        cells = "".join(f"<td{align[name]}>{escape(row[name])}</td>" for name in rest)
        body.append(f'<tr><th scope="row"{align[first]}>{escape(row[first])}</th>{cells}</tr>')
    return scrolled(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def scrolled(inner: str) -> str:
    """A wide table scrolls by itself, so that the page need not."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="table">{inner}</div>'


def notes(lines: Iterable[str], *, kind: str = "note") -> str:
    """A list of lines; nothing if there is none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}s">{items}</ul>' if items else ""


def folded(summary: str, inner: str, *, is_open: bool = False) -> str:
    """`summary` and `inner` are HTML."""
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>{inner}</details>"
