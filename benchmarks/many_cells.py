"""What reading a study of thousands of cells costs: CPU seconds (user and system) and memory of each verb.

CPU seconds of a process mean the same on a machine that is busy with other things. Cells are made up: a few of them
with rows as a run leaves them, each copied under many settings, tasks' batch sizes and seeds.

    python benchmarks/many_cells.py [--cells 3000] [--verbs table,validate,gc,status]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import made_up
from lynx_exp.store.done import seal

GOAL_S = {"table": 20.0}
"""CPU seconds for 3,000 cells."""
LANES, BATCHES, TASKS, SEEDS, LAYERS = 4, (4, 8, 16), ("gsm8k", "wmt16"), 2, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--verbs", default="table,validate,gc,status")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        study = Path(place) / "many"
        made = write_study(study, options.cells)
        cases = [measure(verb, study, made) for verb in options.verbs.split(",")]
    for case in cases:
        print("{verb:<10} {cpu_s:7.1f} CPU s  {peak_mib:6.0f} MiB".format(**case))
    timed = {case["verb"]: case for case in cases}
    goals = {verb: goal * made / 3000 for verb, goal in GOAL_S.items() if verb in timed}
    met = all(timed[verb]["cpu_s"] <= goal for verb, goal in goals.items())
    print(json.dumps({"benchmark": "many_cells", "cells": made, "goal": goals, "met": met, "cases": cases}))


def write_study(study: Path, cells: int) -> int:
    """As many cells, or a few more: policies over every task, batch size and seed, vanilla among them."""
    made_up.LAYERS = LAYERS
    templates = [
        (policy, task, batch, _template(study, policy, task, batch))
        for policy in ("vanilla", "lynx")
        for task in TASKS
        for batch in BATCHES
    ]
    around = len(TASKS) * len(BATCHES) * SEEDS
    settings = max(1, -(-cells // around) - 1)
    for policy, task, batch, folder in templates:
        for setting in range(1 if policy == "vanilla" else settings):
            for seed in range(SEEDS):
                _copy(folder, study, policy, task, batch, setting, seed)
        shutil.rmtree(folder)
    return (settings + 1) * around


def _template(study: Path, policy: str, task: str, batch: int) -> Path:
    folder = study / f".{policy}-{task}-{batch}"
    point = made_up.Point(policy=policy, task=task, batch=batch, keep=1.0 if policy == "vanilla" else 0.7)
    made_up.write_cell(folder, point, LANES, np.random.default_rng(batch))
    return folder


def _copy(template: Path, study: Path, policy: str, task: str, batch: int, setting: int, seed: int) -> None:
    name = f"{policy}{setting}-{task}-b{batch}-s{seed}"
    shutil.copytree(template, study / name)
    info = json.loads((template / "cell.json").read_text())
    params = {} if policy == "vanilla" else {"alpha": setting / 100, "beta": 2}
    label = f"lynx(alpha={setting / 100}, beta=2)" if params else "vanilla"
    identity = {"cell_id": name, "pair_id": f"{task}-{batch}-{seed}", "seed": seed, "study": study.name}
    (study / name / "cell.json").write_text(
        json.dumps(info | identity | {"policy_params": params, "policy_label": label})
    )
    files = sorted(path.name for path in (study / name).iterdir() if path.name != "DONE")
    (study / name / "DONE").write_text(json.dumps(seal(study / name, files), indent=1) + "\n")


def measure(verb: str, study: Path, cells: int) -> dict[str, Any]:
    """CPU seconds and peak memory of `lynx-results VERB`, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import resource, sys\nfrom lynx_exp.results.main import main\n"
        f"try:\n    main({[verb, str(study)]!r})\n"
        "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"verb": verb, "cells": cells, "cpu_s": round(cpu, 2), "peak_mib": int(process.stderr.split()[-1]) / 1024}


if __name__ == "__main__":
    main()
