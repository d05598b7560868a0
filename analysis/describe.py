"""docs/records.md: the frames of `analysis.load`, their columns and units. Made by

python -m analysis.describe > docs/records.md
"""

from __future__ import annotations

from collections.abc import Sequence

from lynx_exp.store.cell_columns import FRAME_ROWS, FRAMES
from lynx_exp.store.table_columns import TABLE_COLUMNS, TABLE_ROWS, Column

_HEAD = """\
# Records

Made from `lynx_exp/store/cell_columns.py` and `table_columns.py` by `python -m analysis.describe > docs/records.md`;
change it there.

`load` reads all finished cells at or below a folder, into pandas frames:

```python
from analysis import load

cells, samples, steps = load("results/demo")  # the three that most notebooks need

records = load("results/demo")  # all of them, by name
records.cells, records.metrics, records.samples, records.responses, records.steps, records.prefill
records.timing, records.breakdown, records.fidelity
records.unfinished  # cells that were left out, with their state

accuracy = samples.merge(cells, on="cell_id").groupby(["policy_label", "batch_size", "subtask"])["score"].mean()
active = steps.merge(cells[["cell_id", "policy_label"]], on="cell_id").groupby("policy_label")["active_experts"].mean()
```

Each row names its `cell_id`. Cells with the same `pair_id` ran the same requests in the same lanes and differ in their
policy alone (its parameters, phases and layers), so that their samples pair by `subtask` and `doc_id`. Rows that share
a `lane` shared a decode batch: they are not independent. What is missing is null (`isna()`).
`analysis.compare.results(records)` gives the numbers of `lynx-results table`, with their intervals.
"""


_FILES = """
## Columns that only the files have

`load` leaves them out; `lynx_exp.store.read` reads a cell's files whole.
"""


def page() -> str:
    """The whole file."""
    frames = "".join(f"\n## {name}\n\n{_table(FRAME_ROWS[name], columns)}" for name, columns in FRAMES.items())
    return _HEAD + frames + _FILES + "".join(_rest(name) for name in TABLE_COLUMNS)


def _rest(name: str) -> str:
    """What the file of a table has and no frame."""
    columns = [column for column in TABLE_COLUMNS[name] if name not in FRAMES or not column.loaded]
    return f"\n### {name}.parquet\n\n{_table(TABLE_ROWS[name], columns)}" if columns else ""


def _table(row: str, columns: Sequence[Column]) -> str:
    rows = [f"| `{column.name}` | {column.unit} | {column.meaning} |\n" for column in columns]
    return f"A row is {row}.\n\n| column | unit | meaning |\n| --- | --- | --- |\n" + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
