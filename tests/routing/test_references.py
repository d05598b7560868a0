"""lynx, oea and xshare against references written from the papers' pseudocode: NumPy, one token, expert and slot at a
time, sharing nothing with the package. Ties, dead rows and several lanes included.

Logits are eighths, exact in binary, so that no rounding decides which bin a gap falls into; they also make ties.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lynx_exp.routing import RouterRule, StepContext, build_policy
from tests.routing.laws import route

CASES = 1000


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row.astype(np.float64) - row.max())
    return powers / powers.sum()


def ranking(key: np.ndarray, ties: np.ndarray | None = None) -> list[int]:
    """Expert numbers, best first; ties by the second key, then by lower number."""
    second = key if ties is None else ties
    return sorted(range(len(key)), key=lambda e: (-key[e], -second[e], e))


def into(row: np.ndarray, kept: set[int], k: int, own_mass: float | None) -> dict[int, float]:
    """Weights of the token's best k experts within `kept`, summing to `own_mass` (1 for None)."""
    chosen = [e for e in ranking(row) if e in kept][:k]
    score = softmax(row)
    total = sum(score[e] for e in chosen)
    mass = 1.0 if own_mass is None else own_mass
    return {e: mass * score[e] / total for e in chosen}


def top_mass(row: np.ndarray, k: int) -> float:
    return sum(softmax(row)[e] for e in ranking(row)[:k])


def lynx(rows: np.ndarray, k: int, *, alpha: float, beta: int | None, bins: str) -> list[set[int]]:
    """Step 1 to 3 of AffinityBinning: the kept set, the same for every row."""
    batch, size = rows.shape
    q = np.empty((batch, size))
    for t in range(batch):
        for e in range(size):
            gap = alpha * (rows[t, e] - rows[t].max())
            q[t, e] = math.ceil(gap) if bins == "ceil" else gap
            if beta is not None and gap <= -beta:
                q[t, e] = -beta
    h = float(batch) ** q
    kept: set[int] = set()
    for t in range(batch):
        z = np.array([q[t, e] + (sum(h[:, e]) - h[t, e]) / batch for e in range(size)])
        kept.update(ranking(z.round(12), rows[t])[:k])
    return [kept] * batch


def oea(rows: np.ndarray, k: int, *, k0: int, p: float, k_max: int, max_rank: int) -> list[set[int]]:
    """Algorithm 2: each row's own set, at most k_max experts of it."""
    base: set[int] = set()
    mandatory = []
    for row in rows:
        order, score = ranking(row), softmax(row)
        needed = next((t for t in range(1, len(order) + 1) if sum(score[order[:t]]) >= p), len(order))
        mandatory.append(min(k0, needed))
        base.update(order[: mandatory[-1]])
    sets = []
    for row, insists in zip(rows, mandatory, strict=True):
        order = ranking(row)
        own = set(order[:insists])
        for e in order[insists:max_rank]:
            if len(own) == k_max:
                break
            if e in base:
                own.add(e)
        sets.append(own)
    return sets


def xshare(rows: np.ndarray, k: int, *, budget: int, score: str, warm_up: int, warm_up_for: str) -> list[set[int]]:
    """The paper's greedy selection; with `logit` and `token` the pull request's masks."""
    total = sum((softmax(row) if score == "prob" else row.astype(np.float64)) for row in rows)
    total = total.round(9)  # a float64 sum in another order must not decide between equals
    warm = [set(ranking(row)[:warm_up]) for row in rows]
    kept: set[int] = set() if warm_up_for == "token" else set().union(*warm)
    for e in ranking(total):
        if len(kept) >= budget:
            break
        kept.add(e)
    return [kept | own if warm_up_for == "token" else kept for own in warm]


def draw(rng: np.random.Generator, policy: str) -> tuple[int, dict]:
    """(top-K, parameters)."""
    k = int(rng.choice([1, 2, 4]))
    if policy == "lynx":
        beta = rng.choice([1, 2, 4, 0])
        return k, {
            "alpha": float(rng.choice([0.75, 1.0, 2.0, 3.0])),
            "beta": int(beta) or None,
            "bins": str(rng.choice(["ceil", "continuous"])),
        }
    if policy == "oea":
        k0 = int(rng.integers(1, k + 1))
        k_max = int(rng.choice([k, k0, k + 1]))
        return k, {
            "k0": k0,
            "p": float(rng.choice([0.3, 0.6, 1.0])),
            "k_max": k_max,
            "max_rank": int(rng.choice([k0, 5, 8])),
        }
    warm = str(rng.choice(["lane", "token"]))
    score = str(rng.choice(["prob", "logit"]))
    return k, {
        "budget": int(rng.integers(k, 8)),
        "score": score,
        "warm_up": int(rng.integers(0, k + 1)),
        "warm_up_for": warm,
    }


@pytest.mark.parametrize("policy,reference", [("lynx", lynx), ("oea", oea), ("xshare", xshare)])
def test_equals_a_loop_written_reference(policy: str, reference) -> None:
    rng = np.random.default_rng(20)
    changed = short = 0
    for _ in range(CASES):
        rule = RouterRule(renormalize=bool(rng.integers(2)))
        rows, size = int(rng.integers(2, 18)), int(rng.choice([8, 12]))
        k, parameters = draw(rng, policy)
        logits = (rng.integers(-24, 25, (rows, size)) / 8).astype(np.float32)
        lane, live = rng.integers(0, 2, rows), rng.random(rows) < 0.8
        step = StepContext(
            layer=0,
            decode=torch.ones(rows, dtype=torch.bool),
            lane=torch.from_numpy(lane),
            live=torch.from_numpy(live),
            num_lanes=2,
            key=torch.tensor([0, 1]),
            row=torch.arange(rows),
        )
        routing = route(torch.from_numpy(logits), rule, top_k=k)
        out = build_policy(policy, **parameters)(routing, step, rule)
        slots = parameters.get("k_max", k)
        for g in range(2):
            mine = np.nonzero(live & (lane == g))[0]
            if len(mine) < 2:
                continue
            for t, kept in zip(mine, reference(logits[mine], k, **parameters), strict=True):
                expected = into(logits[t], kept, slots, None if rule.renormalize else top_mass(logits[t], k))
                got = {e: w for e, w in zip(out.experts[t].tolist(), out.weights[t].tolist(), strict=True) if w > 0}
                assert got == pytest.approx(expected, rel=1e-5), (parameters, logits[mine])
                changed += set(got) != set(routing.experts[t].tolist())
                short += len(got) < k
        for t in np.nonzero(~live)[0]:
            assert out.experts[t, :k].tolist() == routing.experts[t].tolist()
    assert changed > CASES, "the cases must exercise the policy"
    assert (short > 0) == (policy == "oea")
