"""Plans: deterministic, complete, groups kept together."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.engine import BatchPlan, Request


@given(n=st.integers(0, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 5))
def test_static_plans_hold_every_request_once(n: int, batch_size: int, seed: int) -> None:
    plan = BatchPlan.static(n, batch_size, seed)
    assert sorted(chain(*plan.lanes)) == list(range(n))
    assert all(len(lane) == batch_size for lane in plan.lanes[:-1])
    assert plan == BatchPlan.static(n, batch_size, seed)


def test_the_seed_shuffles_and_the_digest_tells() -> None:
    plans = {BatchPlan.static(40, 4, seed).digest() for seed in range(5)}
    assert len(plans) == 5
    assert BatchPlan.static(40, 4, 0).digest() != BatchPlan.static(40, 8, 0).digest()


def test_groups_stay_together() -> None:
    groups = [doc for doc in range(10) for _ in range(4)]
    plan = BatchPlan.static(40, 8, 1, groups=groups)
    for lane in plan.lanes:
        assert [groups[r] for r in lane] == [groups[lane[0]]] * 4 + [groups[lane[4]]] * 4


@given(
    sizes=st.lists(st.integers(1, 9), max_size=12),
    max_rows=st.integers(1, 20),
)
def test_packs_keep_order_and_fit(sizes: list[int], max_rows: int) -> None:
    plan = BatchPlan(tuple(tuple(range(size)) for size in sizes))
    packs = list(plan.packs(range(len(sizes)), max_rows))
    assert list(chain(*packs)) == list(range(len(sizes)))
    for pack in packs:
        assert len(pack) == 1 or sum(sizes[i] for i in pack) <= max_rows


def test_bad_plans_and_requests_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        BatchPlan.static(3, 0)
    with pytest.raises(ValueError, match="prompt_ids"):
        Request(prompt_ids=())
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        Request(prompt_ids=(1,), max_new_tokens=0)
