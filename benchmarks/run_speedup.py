"""Is the speed-up that a study reports that of its whole run?

    python benchmarks/run_speedup.py            lynx_tiny, and a random model of more than 1 GB

Real continuous lanes run under vanilla and under a policy. Then each decode step of all of these lanes is timed, a lane
of vanilla's run and one of the policy's in turns: milliseconds a token end to end. Against that stand the windows
that `measure.latency=true` draws by default, and what the latency model integrates from them over the steps of the run.
Prefills are apart in all of them. A few minutes on 2 idle cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis import latency
from analysis.latency_model import integrate
from analysis.load import Records
from benchmarks.harness import report
from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, LaneResult, LaneRun, Request, WindowTiming, draw_windows
from lynx_exp.engine.timing.windows import window_of
from lynx_exp.run.time_cell import timing_rows
from lynx_exp.store.step_times import window_pairs
from lynx_exp.tasks.mini import held_out

WITHIN = 0.05
"""Of each other, measured and integrated."""
ROUNDS = 5
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 512,
}
"""1.3 GB in fp32."""
TABLE = "{:<12}{:<18}{:>8}{:>24}{:>24}{:>24}{:>10}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--windows", type=int, default=24, help="at most; a study's own default")
    parser.add_argument("--only", choices=("lynx_tiny", "random"))
    arguments = parser.parse_args()
    print(TABLE.format("model", "policy", "batch", "measured end to end", "integrated", "windows", "apart"))
    cases = []
    for name in ("lynx_tiny", "random"):
        if arguments.only in (None, name):
            cases += _cases(name, arguments.batch, arguments.windows)
    worst = max(cases, key=lambda case: case["apart"])
    headline = {"ratio": 1 - worst["apart"], "low": None, "high": None}
    report("integrated against measured speed-up", 1 - WITHIN, headline, cases)


def _cases(name: str, batch: int, windows: int) -> list[dict[str, Any]]:
    if name == "lynx_tiny":
        engine = Engine.from_pretrained("lynx_tiny", experts_implementation="per_expert")
        prompts = [engine.encode(item.prompt) for item in held_out("mini_gsm8k")[: 8 * batch]]
        lengths = [48] * len(prompts)
    else:
        engine = Engine.from_config("mixtral", LARGE, experts_implementation="per_expert")
        rng = Random(0)
        prompts = [tuple(rng.randrange(3, 8192) for _ in range(rng.randint(20, 80))) for _ in range(4 * batch)]
        lengths = [rng.randint(4, 24) for _ in prompts]  # random weights never end a response by themselves
    requests = [Request(prompt_ids=p, max_new_tokens=n) for p, n in zip(prompts, lengths, strict=True)]
    plan = BatchPlan.continuous(len(requests), batch, waves=4)
    policies = {"lynx(3, 2)": build_policy("lynx", alpha=3.0, beta=2)}
    policies["latency(4)"] = build_policy("lynx_v1_latency", keep_experts=4)
    vanilla = list(engine.run_lanes(requests, plan))
    return [_case(name, engine, requests, plan, vanilla, label, policies[label], windows) for label in policies]


def _case(
    name: str,
    engine: Engine,
    requests: Sequence[Request],
    plan: BatchPlan,
    vanilla: Sequence[LaneResult],
    label: str,
    policy: Any,
    windows: int,
) -> dict[str, Any]:
    own = list(engine.run_lanes(requests, plan, policy))
    runs = {"vanilla": _runs(requests, vanilla), "policy": _runs(requests, own)}
    measured = _end_to_end(engine, runs, policy)
    drawn = {who: list(draw_windows(each, 4, windows, seed=0)) for who, each in runs.items()}
    timed = {"vanilla": engine.measure_windows(drawn["vanilla"], policies={})}
    timed["policy"] = engine.measure_windows(drawn["policy"], policies={"policy": policy}, least=min(10, windows))
    records = _records(engine, requests, {"vanilla": vanilla, "policy": own}, timed, plan.widest)
    integrated = integrate(records)["policy"].speedup
    few = latency.speedup(window_pairs(records.timing[records.timing["cell_id"] == "policy"]))
    assert integrated is not None
    apart = abs(integrated.value / measured[0] - 1)
    shown = [_shown(*measured), *(_shown(each.value, each.low, each.high) for each in (integrated, few))]
    print(TABLE.format(name, label, plan.widest, *shown, f"{100 * apart:.1f} %"), flush=True)
    case = {"model": name, "policy": label, "batch": plan.widest, "apart": apart}
    case |= {"measured": measured, "integrated": [integrated.value, integrated.low, integrated.high]}
    return case | {"windows": [few.value, few.low, few.high]}


def _shown(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if low is not None and high is not None else f"{value:.3f}"


def _runs(requests: Sequence[Request], lanes: Sequence[LaneResult]) -> list[LaneRun]:
    return [
        LaneRun(
            subtask="t",
            lane=lane.lane,
            prompts=[requests[number].prompt_ids for number in lane.requests],
            tokens=lane.token_ids,
            slots=lane.slots,
            entered=lane.entered,
        )
        for lane in sorted(lanes, key=lambda lane: lane.lane)
    ]


def _end_to_end(engine: Engine, runs: dict[str, list[LaneRun]], policy: Any) -> tuple[float, float, float]:
    """(ratio, low, high) of the milliseconds a token over all steps of all lanes: vanilla's in its run over the
    policy's in its. A step counts with its median over the rounds, so that an interruption of the machine, which no
    run of its own has, is in none of them; bootstrap over rounds at 95 %."""
    rounds: list[list[list[float]]] = [[], []]
    tokens = [0, 0]
    for number in range(ROUNDS):
        taken: list[list[float]] = [[], []]
        for lane, pair in enumerate(zip(runs["vanilla"], runs["policy"], strict=True)):
            for at in (0, 1) if (number + lane) % 2 else (1, 0):
                whole = window_of(pair[at], 0, pair[at].num_steps)
                timing = engine.measure_windows([whole], policies={"policy": policy} if at else {}, repeats=1)
                taken[at] += [row.ms for row in timing.rows if row.name == timing.names[-1]]
                tokens[at] += sum(map(len, whole.steps)) if not number else 0
        for at in (0, 1):
            rounds[at].append(taken[at])
    times = [np.array(each) for each in rounds]

    def ratio(chosen: Any) -> float:
        slow, fast = (np.median(each[chosen], axis=0).sum() / count for each, count in zip(times, tokens, strict=True))
        return float(slow / fast)

    rng = np.random.default_rng(0)
    drawn = [ratio(rng.integers(0, ROUNDS, ROUNDS)) for _ in range(500)]
    return ratio(np.arange(ROUNDS)), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def _records(
    engine: Engine,
    requests: Sequence[Request],
    lanes: dict[str, Sequence[LaneResult]],
    timed: dict[str, WindowTiming],
    batch: int,
) -> Records:
    """As a study of two cells would be read."""
    responses, steps, timing = [], [], []
    for cell, results in lanes.items():
        for lane in results:
            for at, number in enumerate(lane.requests):
                row = {"cell_id": cell, "subtask": "t", "lane": lane.lane, "entered_step": lane.entered[at]}
                row |= {"prompt_tokens": len(requests[number].prompt_ids), "new_tokens": len(lane.token_ids[at])}
                responses.append(row)
            steps += [{"cell_id": cell, "subtask": "t", **row._asdict()} for row in lane.active_rows()]
        timing += [{"cell_id": cell, **row} for row in timing_rows(timed[cell])]
    shared: dict[str, Any] = {"model": "m", "device": str(engine.device), "dtype": "float32", "backend": "transformers"}
    shared |= {"batch_size": batch, "num_layers": engine.num_layers, "pair_id": "p", "mixing": None, "task": "t"}
    cells = [
        {"cell_id": cell, "policy": "vanilla" if cell == "vanilla" else "lynx", "timed_context": None, **shared}
        for cell in lanes
    ]
    empty = pd.DataFrame()
    frames = {"steps": pd.DataFrame(steps), "responses": pd.DataFrame(responses), "timing": pd.DataFrame(timing)}
    return Records(cells=pd.DataFrame(cells), metrics=empty, samples=empty, fidelity=empty, **frames)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
