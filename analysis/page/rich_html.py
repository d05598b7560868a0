"""What is printed to a rich console, as HTML: so the page's tables are those of `lynx-results table`, cell for cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.page.text import escape

_PLAIN = Console(emoji=False, file=StringIO(), width=1000, color_system=None)
"""Knows what styles are called; prints nothing."""


@dataclass(kw_only=True)
class Block:
    """A table, and the lines printed below it."""

    title: str = ""
    """HTML; empty for lines that follow no table."""
    plain_title: str = ""
    table: str = ""
    lines: list[str] = field(default_factory=list)
    """HTML of each."""


class HtmlConsole:
    """In the place of `rich.console.Console` in `analysis.results_table`: tables and texts, kept instead of shown."""

    is_terminal = False

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def print(self, what: object = "", **_: object) -> None:
        if isinstance(what, Table):
            title = what.title if isinstance(what.title, Text) else Text(str(what.title or ""))
            self.blocks.append(Block(title=inline(title), plain_title=title.plain, table=table_html(what)))
            return
        text = what if isinstance(what, Text) else Text(str(what))
        if text.plain.strip():
            if not self.blocks or text.style == "dim":  # a legend is about all tables before it
                self.blocks.append(Block())
            self.blocks[-1].lines.append(inline(text))


def inline(text: Text | str) -> str:
    """HTML of one text; its styles become classes."""
    styled = text.copy() if isinstance(text, Text) else Text(text)
    styled.stylize_before(styled.style)  # rendered without spans, rich leaves the text's own style out
    return "".join(_segments(styled))


def _segments(text: Text) -> Iterator[str]:
    for segment in text.render(_PLAIN):
        style = segment.style
        names = [name for name in ("bold", "dim", "italic") if style is not None and getattr(style, name)]
        if style is not None and style.color is not None:
            names.append(style.color.name)
        content = escape(segment.text)
        yield f'<span class="{" ".join(names)}">{content}</span>' if names and content else content


def table_html(table: Table) -> str:
    """`<table>`, its first column as row headings. Each cell names its column: on a phone a row becomes a card."""
    columns = table.columns
    names = [f' data-column="{escape(_plain(column.header))}"' for column in columns]
    right = [' class="number"' if column.justify == "right" else "" for column in columns]
    heads = [f'<th scope="col"{at}>{_heading(column.header)}</th>' for column, at in zip(columns, right, strict=True)]
    body = []
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        first, *rest = (inline(Text.assemble(cell, style=row.style or "")) for cell in cells)
        more = "".join(f"<td{at}{name}>{cell}</td>" for cell, at, name in zip(rest, right[1:], names[1:], strict=True))
        first = first.replace("_", "_<wbr>").replace("(", "(<wbr>")  # where a name may be broken, on a phone
        body.append(f'<tr><th scope="row">{first}</th>{more}</tr>')
    return f'<table class="results"><thead><tr>{"".join(heads)}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _heading(header: RenderableType) -> str:
    return inline(_plain(header))


def _plain(header: RenderableType) -> str:
    text = header if isinstance(header, Text) else Text(str(header))
    return " ".join(text.plain.split())
