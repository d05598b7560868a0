"""Do both backends say the same? The cells of two studies, paired document by document.

    G="-m model=lynx_tiny task=mini_gsm8k,mini_wmt16 policy=vanilla,lynx,oea batch_size=4,16"
    lynx-exp $G backend=vllm study_name=vllm; lynx-exp $G study_name=transformers
    python benchmarks/backends.py results/vllm results/transformers

Prints for each point both scores, their difference in points (95 %, clustered by lane), how many responses are equal
letter for letter, and the active experts of both. The last line's ratio is the share of equal responses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.bleu import bleu_of_counts, paired_bleu_difference, sentence_counts
from analysis.statistics import paired_difference
from lynx_exp.store.read import CellRecord, read_cells


def points(study: Path) -> dict[tuple[str, str, int], CellRecord]:
    cells = [cell for cell in read_cells(study) if cell.done]
    return {(cell.info["task"], cell.info["policy_label"], cell.info["batch_size"]): cell for cell in cells}


def compare(one: CellRecord, other: CellRecord) -> Mapping[str, Any]:
    rows = [
        sorted(cell.samples().to_pylist(), key=lambda row: (row["subtask"], row["doc_id"])) for cell in (one, other)
    ]
    lanes = np.array([row["lane"] for row in rows[0]])
    same = sum(a["response"] == b["response"] for a, b in zip(*rows, strict=True))
    if rows[0][0]["score"] is None:
        mine, theirs = (sentence_counts([r["filtered"] for r in own], [r["target"] for r in own]) for own in rows)
        scores = [bleu_of_counts(counts.sum(axis=0)) for counts in (mine, theirs)]
        difference = paired_bleu_difference(mine, theirs, lanes)
    else:
        mine, theirs = (np.array([row["score"] for row in own], float) for own in rows)
        scores = [100 * values.mean() for values in (mine, theirs)]
        difference = paired_difference(mine, theirs, lanes).scaled(100)
    active = [cell.metrics["active_experts"] for cell in (one, other)]
    return {
        "scores": scores,
        "difference": [difference.value, difference.low, difference.high],
        "same": same,
        "responses": len(rows[0]),
        "active": active,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs=2, type=Path, metavar="STUDY")
    one, other = (points(study) for study in parser.parse_args().studies)
    shared = sorted(set(one) & set(other))
    if not shared:
        raise SystemExit("the studies have no point in common")
    cases = []
    for task, policy, batch in shared:
        case = compare(one[task, policy, batch], other[task, policy, batch])
        value, low, high = case["difference"]
        interval = "" if low is None else f" [{low:+.1f}, {high:+.1f}]"
        scores, active = ("{:.1f} / {:.1f}".format(*case[name]) for name in ("scores", "active"))
        equal = f"{case['same']}/{case['responses']}"
        point = f"{task:<12} {policy:<24} batch {batch:<3}"
        print(f"{point} scores {scores}  difference {value:+.1f}{interval}  equal {equal}  experts {active}")
        cases.append({"task": task, "policy": policy, "batch_size": batch, **case})
    same, total = (sum(case[name] for case in cases) for name in ("same", "responses"))
    line = {"benchmark": "backends", "ratio": same / total, "low": None, "high": None, "goal": 0.95}
    print(json.dumps(line | {"met": same / total >= 0.95, "cases": cases}, default=float))


if __name__ == "__main__":
    main()
