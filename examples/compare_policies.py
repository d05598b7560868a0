"""Two policies against each other, not against vanilla: the paired difference of their scores, clustered by lane.

python examples/compare_policies.py results/demo coverage lynx
"""

import sys

from analysis import load
from analysis.statistics import p_value, paired_difference

folder, first, second = sys.argv[1:]
cells, samples, _ = load(folder)
samples = samples[samples["score"].between(0, 1)].merge(cells[["cell_id", "pair_id", "policy", "batch_size"]])
shared = ["pair_id", "batch_size", "subtask", "doc_id", "lane"]  # of one pair id: the same requests in the same lanes

pairs = samples[samples["policy"] == first].merge(samples[samples["policy"] == second], on=shared)
if pairs.empty:
    sys.exit(f"{folder}: {first} and {second} have no cells on one plan")
for (batch, subtask), part in pairs.groupby(["batch_size", "subtask"], observed=True):
    found = paired_difference(part["score_x"], part["score_y"], part["lane"]).scaled(100)
    interval = "" if found.low is None or found.high is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    print(
        f"{subtask}, batch {batch}: {first} - {second} = {found.value:+.2f}{interval} points, "
        f"{len(part)} documents in {part['lane'].nunique()} lanes, p = {p_value(found):.3g}"
    )
