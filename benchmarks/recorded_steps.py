"""Accuracy runs in recorded steps against steps launched from Python: the same tokens, and how long a step takes.

    python benchmarks/recorded_steps.py [--shape qwen3_30b_a3b --layers 4 | --model lynx_tiny] [--rows 256] [--batch 16]

For vanilla and some policies, in lanes of `--batch` whose slots are refilled: the median time of a step both ways, the
share of tokens that are equal, and whether a policy's tokens in a pack of all policies equal those that it gives alone
(on a GPU they should where `exact` is true). On a CPU recorded steps are the same function run again over the same
buffers: that checks the logic, and its time means nothing. `how` is what `status.json` of a cell would say.

The last line's ratio is launched / recorded, vanilla's median step.
"""

from __future__ import annotations

import argparse
import random
import statistics
from time import perf_counter
from typing import Any

from benchmarks.harness import report
from benchmarks.shapes import SHAPES, VOCABULARY, large_engine
from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Job, Request
from lynx_exp.engine.decoding.graph import rerun
from lynx_exp.engine.decoding.steps import Steps

GOAL = 1.0
Tokens = dict[tuple[int, int], list[list[int]]]


def decode(engine: Engine, jobs: list[Job]) -> tuple[Tokens, float]:
    """(tokens by job and lane, median milliseconds between two steps)."""
    times: list[float] = []

    def on_step(tokens: int, rows: int) -> None:
        if tokens == rows:  # else some have entered
            times.append(perf_counter())

    found = {(job, lane.lane): lane.token_ids for job, lane in engine.run_jobs(jobs, on_step=on_step, on_note=print)}
    steps = [(after - before) * 1e3 for before, after in zip(times, times[1:], strict=False)]
    return found, statistics.median(steps)


def equal(ours: Tokens, theirs: Tokens) -> float:
    """Share of tokens that are the same."""
    pairs = [
        (a, b)
        for place, lane in ours.items()
        for one, other in zip(lane, theirs[place], strict=True)
        for a, b in zip(one, other, strict=False)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lynx_tiny")
    parser.add_argument("--shape", choices=SHAPES, help="random layers of this shape instead")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=256, help="of the physical batch, and requests")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    common: dict[str, Any] = {"dtype": arguments.dtype, "max_rows": arguments.rows}
    if arguments.shape:
        engine = large_engine(arguments.shape, arguments.layers, **common)
    else:
        engine = Engine.from_pretrained(arguments.model, **common)
    draw = random.Random(0)
    most = min(engine.vocabulary, VOCABULARY)
    requests = [
        Request(
            prompt_ids=tuple(draw.randrange(3, most) for _ in range(draw.randint(24, 64))),
            max_new_tokens=draw.randint(arguments.new_tokens // 2, arguments.new_tokens),
            ignore_eos=True,
        )
        for _ in range(arguments.rows)
    ]
    plan = BatchPlan.continuous(len(requests), arguments.batch, 0, waves=2)
    policies = {
        "vanilla": None,
        "no_drop": build_policy("no_drop"),
        "lynx": build_policy("lynx", alpha=3.0, beta=max(1, engine.top_k // 2)),
        "coverage": build_policy("coverage"),
        "top_k": build_policy("top_k", k=max(1, engine.top_k // 2)),
    }
    jobs = {name: engine.job(requests, plan, policy) for name, policy in policies.items()}
    recorded, cases = engine.steps, []
    if engine.device.type != "cuda":
        recorded.record_with(rerun)
    launched = Steps("eager", engine.model, engine.routers)
    together, _ = decode(engine, list(jobs.values()))
    for number, (name, job) in enumerate(jobs.items()):
        engine.steps = launched
        theirs, theirs_ms = decode(engine, [job])
        engine.steps = recorded
        ours, ours_ms = decode(engine, [job])
        packed = {(0, lane): tokens for (at, lane), tokens in together.items() if at == number}
        case = {
            "policy": name,
            "launched_ms": theirs_ms,
            "recorded_ms": ours_ms,
            "ratio": theirs_ms / ours_ms,
            "equal_tokens": equal(ours, theirs),
            "packed_equal_alone": equal(packed, ours),
            "how": recorded.record(),
        }
        cases.append(case)
        print(
            f"{name:>9}: {theirs_ms:8.2f} ms launched, {ours_ms:8.2f} recorded, {case['equal_tokens']:.2%} of tokens "
            f"equal, {case['packed_equal_alone']:.2%} packed and alone",
            flush=True,
        )
    print(recorded.record())
    headline = cases[0] | {"low": cases[0]["ratio"], "high": cases[0]["ratio"]}
    report("recorded_steps", GOAL, headline, cases)


if __name__ == "__main__":
    main()
