"""Tables for papers: LaTeX with booktabs, numbers with their intervals.

Not pandas' Styler: it separates groups by \\cline under single columns, not by booktabs' \\midrule, has no comments
above a table, and would need each cell formatted beforehand all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_SPECIAL = {letter: f"\\{letter}" for letter in "&%$#_{}"}
_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {"×": r"$\times$", "±": r"$\pm$", "−": "$-$"}


def escape(text: str) -> str:
    """Plain text as LaTeX prints it."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def number(value: float, low: float = math.nan, high: float = math.nan, form: str = "{:.1f}") -> str:
    """In mathematics, its interval small behind it; a dash for NaN."""
    if math.isnan(value):
        return "--"
    shown = f"${form.format(value + 0.0)}$"
    if math.isnan(low) or math.isnan(high):
        return shown
    return f"{shown} {{\\scriptsize [${form.format(low + 0.0)}$, ${form.format(high + 0.0)}$]}}"


def booktabs(
    columns: Sequence[tuple[str, str]], groups: Sequence[Sequence[Sequence[str]]], notes: Sequence[str] = ()
) -> str:
    """A `tabular` of groups of rows, a thin rule between groups. `columns`: (heading, alignment l, c or r); cells and
    headings are LaTeX already. `notes`: plain text, as comments above. Needs \\usepackage{booktabs}."""
    for group in groups:
        for row in group:
            if len(row) != len(columns):
                raise ValueError(f"row {list(row)}: {len(row)} cells for {len(columns)} columns")
    lines = [f"% {note}" for note in notes]
    lines += [r"\begin{tabular}{" + "".join(align for _, align in columns) + "}", r"\toprule"]
    lines.append(" & ".join(heading for heading, _ in columns) + r" \\")
    for group in groups:
        lines += [r"\midrule", *(" & ".join(row) + r" \\" for row in group)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
