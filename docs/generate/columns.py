"""columns.md: the columns of a study's tables."""

from __future__ import annotations

from analysis.row_schema import ENDS, ESTIMATES, FRAMES, PLAIN
from docs.generate.markdown import code, table


def page() -> str:
    head = ("column", "unit", "meaning")
    ends = ", ".join(code(f"X{end}") for end in ENDS)
    frames = "\n".join(f"- `{name}`: a row is {row}" for name, row in FRAMES.items())
    return (
        "# Columns\n\nThe frames that `analysis.load` reads from disk are in [records](../records.md), with "
        "their units. From them `analysis.study.study(folder)` makes the tables that `lynx-results table` prints "
        f"and `--json` and `--csv` write:\n\n{frames}\n\n"
        "A name that is also a column of the [cells](../records.md) means the same. "
        "What is missing is null.\n\n"
        f"## Estimates\n\nEach estimate X is five columns: `X`, and {ends} (95 % interval, standard error, degrees of "
        "freedom), missing where there is nothing to estimate them from.\n\n"
        + table(head, [(code(each.name), each.unit, each.meaning) for each in ESTIMATES])
        + "\n## The other columns\n\n"
        + table(head, [(code(each.name), each.unit, each.meaning) for each in PLAIN])
    )
