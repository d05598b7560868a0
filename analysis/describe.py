"""docs/records.md: the frames of `analysis.load`, their columns and units. Made by

python -m analysis.describe > docs/records.md
"""

from __future__ import annotations

from analysis import schema

_HEAD = """\
# Records

Made from `analysis/schema.py` by `python -m analysis.describe > docs/records.md`; change it there.

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


def page() -> str:
    """The whole file."""
    return _HEAD + "".join(f"\n{_table(name)}" for name in schema.TABLES)


def _table(name: str) -> str:
    rows = [f"| `{column.name}` | {column.unit} | {column.meaning} |\n" for column in schema.TABLES[name]]
    head = f"## {name}\n\nA row is {schema.ROWS[name]}.\n\n| column | unit | meaning |\n| --- | --- | --- |\n"
    return head + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")
