"""What `coverage` loses by growing its sets in rounds instead of an expert at a time: KL at equal active experts.

    python benchmarks/coverage_rounds.py [--requests 48] [--batch-size 16] [--rounds 2 4 6]

The bundled model on vanilla's own responses to its mini tasks, teacher-forced in lanes. Each form runs at several
tolerances; the KL of greedy at the number of active experts that a form in rounds came to is read off greedy's own
curve (its logarithm, linearly between the two nearest). Intervals: bootstrap over responses. No times: on a CPU only
greedy has compiled loops.

The last line's ratio is greedy's KL / that of the most rounds, the geometric mean over tolerances: at 1 nothing is
lost. Its goal is 0.95.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.harness import report
from benchmarks.teacher_forced import answered
from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.match import mean_active

GOAL = 0.95
TOLERANCES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9)
RESAMPLES = 500


@dataclass(frozen=True)
class Point:
    active: float
    """Experts, mean over layers and scored tokens."""
    kl: list[float]
    """Of each response, summed over its tokens."""


def measured(engine: Engine, requests: list[Request], plan: BatchPlan, rounds: int | None) -> list[Point]:
    """One for each tolerance."""
    policies = [build_policy("coverage", tolerance=tolerance, rounds=rounds) for tolerance in TOLERANCES]
    kl = [[0.0] * len(requests) for _ in policies]
    for found in engine.fidelity_of(requests, plan, [engine.act(policy) for policy in policies]):
        kl[found.act][found.request] = found.kl
    return [
        Point(mean_active(engine.score_lanes(requests, plan, policy)), each)
        for policy, each in zip(policies, kl, strict=True)
    ]


def greedys(curve: Sequence[tuple[float, float]], active: float) -> float | None:
    """KL at `active` experts between the points (active, KL), in order of active; None outside them."""
    for (low, above), (high, below) in zip(curve, curve[1:], strict=False):
        if low <= active <= high and high > low:
            share = (active - low) / (high - low)
            return math.exp((1 - share) * math.log(above) + share * math.log(below))
    return None


def ratio(greedy: list[Point], others: list[Point], chosen: Sequence[int]) -> float:
    """Greedy's KL / the others', on the responses `chosen`: geometric mean over tolerances on its curve."""
    curve = sorted((point.active, sum(point.kl[number] for number in chosen)) for point in greedy)
    logs = []
    for point in others:
        expected = greedys(curve, point.active)
        if expected is not None:
            logs.append(math.log(expected / sum(point.kl[number] for number in chosen)))
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, nargs="+", default=[2, 4, 6])
    given = parser.parse_args()
    engine = Engine.from_pretrained("lynx_tiny", device="cpu")
    requests = answered(engine, given.requests)
    plan = BatchPlan.in_order(len(requests), given.batch_size)
    everything, tokens = range(len(requests)), sum(len(request.continuation_ids) for request in requests)
    print(f"coverage on {len(requests)} responses, {tokens} tokens, lanes of {given.batch_size}")
    print(f"{'rounds':>8}{'tolerance':>11}{'active':>8}{'KL a token':>12}")
    found: dict[int | None, list[Point]] = {}
    cases = []
    for rounds in (None, *given.rounds):
        found[rounds] = measured(engine, requests, plan, rounds)
        for tolerance, point in zip(TOLERANCES, found[rounds], strict=True):
            kl = sum(point.kl) / tokens
            print(f"{rounds or 'greedy':>8}{tolerance:>11g}{point.active:>8.2f}{kl:>12.5f}")
            cases.append({"rounds": rounds, "tolerance": tolerance, "active": point.active, "kl": kl})
    rng, headline = Random(0), {}
    for rounds in given.rounds:
        drawn = [rng.choices(everything, k=len(requests)) for _ in range(RESAMPLES)]
        spread = sorted(ratio(found[None], found[rounds], chosen) for chosen in drawn)
        headline = {
            "rounds": rounds,
            "ratio": ratio(found[None], found[rounds], everything),
            "low": spread[int(0.025 * RESAMPLES)],
            "high": spread[int(0.975 * RESAMPLES) - 1],
        }
        cases.append(headline)
        print("{rounds} rounds: greedy's KL / theirs {ratio:.3f} [{low:.3f}, {high:.3f}]".format(**headline))
    report("coverage_rounds", GOAL, headline, cases)


if __name__ == "__main__":
    main()
