"""Run a small sweep from Python, as `lynx-exp` does from a shell, and read its records into pandas.

python examples/run_cells.py [FOLDER OF RESULTS]
"""

import sys

from analysis import load
from lynx_exp.cli import run

results = sys.argv[1] if len(sys.argv) > 1 else "results"
code = run(
    ["-m", "policy=vanilla,lynx,random_keep", "task=mini_gsm8k", "batch_size=8", "limit=64", "fidelity=true"]
    + [f"results={results}", "study_name=example"]
)  # the same call again skips what is done
if code:
    sys.exit(code)  # the line that says why has been printed

cells, samples, steps = load(f"{results}/example")
scores = samples.groupby("cell_id")["score"].mean()
steps["weighted"] = steps["active_experts"] * steps["scored_rows"]  # as the table: of the steps that made scored tokens
active = steps.groupby("cell_id")["weighted"].sum() / steps.groupby("cell_id")["scored_rows"].sum()
table = cells.set_index("cell_id")[["policy_label"]].assign(score=100 * scores, active_experts=active)
print(table.round(2).to_string(index=False))
