"""`lynx-exp` itself: a small sweep of the bundled model with latency, and what its cells say of the hardware."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.on_gpu.cases import arguments
from benchmarks.on_gpu.records import case, check

SWEEP = ("task=mini_gsm8k,mini_wmt16", "policy=vanilla,no_drop,lynx,coverage", "batch_size=4,16", "limit=64")
TINY = (
    "task=mini_gsm8k",
    "policy=vanilla,lynx",
    "batch_size=2",
    "limit=4",
    "measure.max_windows=2",
    "measure.new_tokens=2",
)
MEASURED = ("measure.latency=true", "measure.windows=2", "tracker=none")


def main() -> None:
    given = arguments(__doc__).parse_args()
    overrides = TINY if given.tiny or given.quick else SWEEP
    cells = 1
    for option in overrides[:3]:
        cells *= option.count(",") + 1
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "lynx_exp",
            "-m",
            *overrides,
            *MEASURED,
            f"device={given.device}",
            f"results={folder}",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        ended = subprocess.run(command, env=environment, check=False)
        done = sorted(path.parent for path in Path(folder).rglob("DONE"))
        for path in done:
            _tell(path)
        wrong = [f"ended with {ended.returncode}"] if ended.returncode else []
        wrong += [f"{len(done)} of {cells} cells are done"] if len(done) != cells else []
    check("lynx-exp ends, all cells done", cells, wrong)


def _tell(cell: Path) -> None:
    info, timing = (json.loads((cell / f"{name}.json").read_text()) for name in ("cell", "timing"))
    own = "vanilla" if timing.get("policy_active_experts") is None else "policy"
    numbers = {name: timing.get(f"{own}_{name}") for name in ("step_gb", "gb_s", "s_mbu", "j_per_token")}
    named = {"policy": info["policy_label"], "task": info["task"], "batch": info["batch_size"]}
    case("cell", **named, graphed=timing["graphed"], experts=timing["experts_implementation"], **numbers)


if __name__ == "__main__":
    main()
