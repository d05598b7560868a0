"""What a policy's own code costs: the decode step with the policy deciding, but vanilla's experts run.

    python benchmarks/policy_cost.py [--model lynx_tiny | --shape qwen3_30b_a3b] [--batches 4 16 64]

Each policy is wrapped so that it computes its whole decision and then hands back the router's own: the same experts
run as in vanilla, and any difference is the policy's cost. no_drop needs no wrapper. `hook` decides nothing: the price
of being asked. The last line's ratio is vanilla / lynx at batch 16; a cost of 5 % is 0.95.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import report
from benchmarks.shapes import SHAPES, VOCABULARY, gib, large_engine
from lynx_exp import Engine, build_policy
from lynx_exp.routing import Policy, RouterRule, Routing, StepContext
from lynx_exp.tasks.mini import held_out

GOAL = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Unheeded(Policy):
    """Lets a policy decide and keeps the router's choice."""

    inner: Policy

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        self.inner(routing, step, rule)
        return routing

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return routing


@dataclass(frozen=True, kw_only=True, eq=False)
class Hook(Policy):
    """Decides nothing."""

    def __call__(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return routing

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return routing


def policies(engine: Engine) -> dict[str, Policy]:
    experts, top_k = engine.num_experts, engine.top_k
    inner = {
        "lynx": build_policy("lynx", alpha=3.0, beta=max(1, top_k // 2) if top_k > 2 else 2),
        "oea": build_policy("oea", k0=max(1, top_k // 2)),
        "xshare": build_policy("xshare", budget=max(top_k, experts // 2)),
        "coverage": build_policy("coverage"),
        "lynx_v1_latency": build_policy("lynx_v1_latency", keep_experts=max(top_k, experts // 2)),
        "top_k": build_policy("top_k", k=max(1, top_k // 2)),
    }
    wrapped: dict[str, Policy] = {name: Unheeded(inner=engine.bind(policy)) for name, policy in inner.items()}
    return {"hook": Hook(), "no_drop": build_policy("no_drop")} | wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lynx_tiny", help="lynx_tiny, a folder or a hub id")
    parser.add_argument("--shape", choices=SHAPES, help="a random model of this shape instead")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-graphs", action="store_true", help="on a GPU: launch each step from Python")
    arguments = parser.parse_args()
    if arguments.shape:
        engine, name = large_engine(arguments.shape, arguments.layers), arguments.shape
        draw = random.Random(0)
        prompts: Sequence[Any] = [
            [draw.randrange(VOCABULARY) for _ in range(32)] for _ in range(max(arguments.batches))
        ]
    else:
        engine, name = Engine.from_pretrained(arguments.model), arguments.model
        prompts = [item.prompt for item in held_out("mini_gsm8k")]
    if arguments.no_graphs:
        engine.steps.refuse("--no-graphs")
    print(f"{name}, {gib(engine):.2f} GiB, {engine.dtype} on {engine.device}, {torch.get_num_threads()} threads")
    print(f"{'batch':>5} {'policy':>16} {'step ms':>8} {'vanilla ms':>10} {'cost %':>7} {'95 %':>15} {'us/layer':>9}")
    cases = []
    for batch in arguments.batches:
        timing = engine.measure(
            prompts,
            batch_size=batch,
            policies=policies(engine),
            new_tokens=arguments.new_tokens,
            repeats=arguments.repeats,
        )
        vanilla = timing.step_time_ms("vanilla")[0]
        for policy in timing.names[1:]:
            ratio, low, high = timing.speedup(policy)
            low, high = low or ratio, high or ratio
            cost_us = (1 / ratio - 1) * vanilla * 1e3 / engine.num_layers
            case = {"batch": batch, "policy": policy, "ratio": ratio, "low": low, "high": high, "us_per_layer": cost_us}
            cases.append(
                case | {"vanilla_ms": vanilla, "experts": timing.experts_implementation, "graphed": timing.graphed}
            )
            percent, least, most = ((1 / value - 1) * 100 for value in (ratio, high, low))
            print(
                f"{batch:>5} {policy:>16} {timing.step_time_ms(policy)[0]:>8.2f} {vanilla:>10.2f} "
                f"{percent:>7.1f} [{least:5.1f},{most:6.1f}] {cost_us:>9.0f}"
            )
    at = 16 if 16 in arguments.batches else arguments.batches[0]
    report("policy_cost", GOAL, next(c for c in cases if c["batch"] == at and c["policy"] == "lynx"), cases)


if __name__ == "__main__":
    main()
