"""coverage: greedy by its own definition, in rounds, and when it stops."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing.policies.coverage import FLOOR, Coverage
from tests.routing.laws import route
from tests.routing.test_policies import RULE, one_lane


@given(seed=st.integers(0, 2**31 - 1), power=st.sampled_from([0.0, 1.0, 2.5, 4.0]), rows=st.integers(2, 12))
@settings(max_examples=100, deadline=None)
def test_coverage_is_greedy_and_its_gains_only_shrink(seed: int, power: float, rows: int) -> None:
    """Against the utility itself (power 0: the log), recomputed for every candidate set: each expert added is the best
    one then, and the growth of the utility never rises."""
    size, k = 8, 2
    routing = route(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 2, RULE, top_k=k)
    share = routing.scores(RULE).double()
    share = share / share.gather(-1, routing.experts).sum(-1, keepdim=True)
    parameters = {"power": power} if power else {"utility": "log"}

    def utility(kept: set[int]) -> float:
        inside = share[:, sorted(kept)].topk(min(k, len(kept)), -1).values.sum(-1)
        return float(-((1 - inside).clamp_min(0) ** power).sum() if power else (inside + FLOOR).log().sum())

    sets: list[set[int]] = []
    for budget in range(k, size + 1):
        policy = Coverage(tolerance=None, budget=budget, **parameters)
        sets.append(set(torch.nonzero(policy.keep(routing, one_lane(rows), RULE)[0])[:, 0].tolist()))
    gains = []
    for before, after in pairwise(sets):
        assert before < after
        gains.append(utility(after) - utility(before))
        best = max(utility(before | {e}) for e in range(size) if e not in before)
        assert utility(after) == pytest.approx(best, abs=1e-6)
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(gains))


def grown(share: torch.Tensor, mass: list[float], kept: set[int], k: int, policy: Coverage) -> set[int]:
    """Coverage in rounds with plain mass (power 1), as its text says it, a token and an expert at a time. Of experts
    that gain as much, the one with more `mass` in the batch goes first."""
    tokens, experts = range(len(share)), range(share.shape[1])
    assert policy.rounds is not None
    least, first = -1.0 if policy.tolerance is None else policy.tolerance * len(share), 0.0
    for number in range(1, policy.rounds + 1):
        worst = [sorted([share[t, e].item() for e in kept] + [0.0] * k)[-k] for t in tokens]
        gain = [[max(0.0, share[t, e].item() - worst[t]) for e in experts] for t in tokens]
        left = [e for e in experts if e not in kept]
        total = {e: sum(gain[t][e] for t in tokens) for e in left}
        if not left:
            break
        first = max(total.values()) if number == 1 else first
        share_of_first = (
            0.5**number if policy.tolerance is None else min(1.0, least / (first or 1.0)) ** (number / policy.rounds)
        )
        limit = least if number == policy.rounds else max(least, first * share_of_first)
        wanted, best = [e for e in left if total[e] >= limit], max(left, key=lambda e: (total[e], mass[e]))
        bids = dict.fromkeys(left, 0.0)
        for t in tokens if wanted else ():
            most = max(wanted, key=lambda e: gain[t][e])
            bids[most] += gain[t][most]
        stays = [e for e in wanted if bids[e] >= limit / 2 or e == best]
        if len(kept) < k and best not in stays:
            stays.append(best)
        room = share.shape[1] if policy.budget is None else policy.budget
        count = min(len(stays), room - len(kept))
        if number == policy.rounds:
            count = max(count, k - len(kept), room - len(kept) if policy.tolerance is None else 0)
        order = sorted(left, key=lambda e: (e not in stays, -total[e], -mass[e]))
        kept = kept | set(order[: max(0, count)])
    return kept


@given(
    seed=st.integers(0, 2**31 - 1),
    rows=st.integers(1, 12),
    rounds=st.integers(1, 7),
    stop=st.sampled_from([(0.3, None), (0.05, None), (0.9, None), (None, 5), (0.02, 4)]),
    guarantee=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_coverage_in_rounds(
    seed: int, rows: int, rounds: int, stop: tuple[float | None, int | None], guarantee: int
) -> None:
    size, k = 10, 3
    routing = route(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 2, RULE, top_k=k)
    tolerance, budget = stop
    policy = Coverage(tolerance=tolerance, budget=budget, power=1.0, guarantee=guarantee, rounds=rounds)
    share = routing.scores(RULE).double()
    share = share / share.gather(-1, routing.experts).sum(-1, keepdim=True)
    expected = grown(
        share,
        routing.mass(RULE).double().sum(0).tolist(),
        set(routing.experts[:, :guarantee].flatten().tolist()),
        k,
        policy,
    )
    found = policy.keep(routing, one_lane(rows), RULE)[0]
    assert set(found.nonzero().flatten().tolist()) == expected
    assert len(expected) >= k


def test_coverage_in_rounds_sees_tokens_served_twice() -> None:
    """Two experts alike for every token, and one that a single token needs: in one round the second of the two has no
    bids."""
    share = torch.tensor([[0.5, 0.5, 1e-9, 1e-9]] * 5 + [[1e-9, 1e-9, 1.0, 1e-9]])
    routing = route(share.log(), RULE, top_k=1)
    policy = Coverage(tolerance=0.1, power=1.0, rounds=1)
    assert policy.keep(routing, one_lane(6), RULE)[0].tolist() == [True, False, True, False]


def test_coverage_stops_by_tolerance() -> None:
    """Two tokens, each with one expert of its own: the second is worth half of a token's loss on average."""
    logits = torch.tensor([[9.0, -9.0, 0.0, -9.0], [-9.0, 9.0, 0.0, -9.0]])
    for power, tolerance, kept in ((1.0, 0.49, 2), (1.0, 0.51, 1), (4.0, 0.83, 2), (4.0, 0.85, 1)):
        routing = route(logits, RULE, top_k=1)
        policy = Coverage(tolerance=tolerance, power=power)
        assert policy.keep(routing, one_lane(2), RULE).sum() == kept, (power, tolerance)
