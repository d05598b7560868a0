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
    docs=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    batch_size=st.integers(1, 6),
    waves=st.integers(1, 4),
    pool=st.integers(0, 30),
    seed=st.integers(0, 3),
)
def test_queues_are_even_and_fillers_strangers(
    docs: list[int], batch_size: int, waves: int, pool: int, seed: int
) -> None:
    """Every request once, in queues of about one length; to each lane fillers of other documents, none twice."""
    groups = [doc for doc, choices in enumerate(docs) for _ in range(choices)]
    own, groups = len(groups), [*groups, *range(100, 100 + pool)]
    plan = BatchPlan.continuous(own, batch_size, seed, groups, waves)
    assert sorted(chain(*plan.lanes)) == list(range(own))
    sizes = [len(lane) for lane in plan.lanes]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size * waves
    assert len(sizes) == -(-own // (batch_size * waves))
    filled = plan.filled(range(own, own + pool), groups, seed)
    assert (filled.lanes, filled.slots) == (plan.lanes, plan.slots) and filled.digest() != plan.digest()
    for lane, fillers in zip(filled.lanes, filled.fillers, strict=True):
        strangers = [groups[number] for number in fillers]
        assert len(set(strangers)) == len(strangers) and not set(strangers) & {groups[number] for number in lane}
        beyond = [number >= own for number in fillers]
        assert beyond == sorted(beyond, reverse=True), "documents that nobody scores come first"
        assert len(fillers) == 8 * batch_size or set(groups) == set(strangers) | {groups[number] for number in lane}


def test_choices_of_a_document_are_spread_as_far_as_there_is_room() -> None:
    """Ten documents of four choices in lanes of ten: each lane asks every document once."""
    groups = [doc for doc in range(10) for _ in range(4)]
    for plan in (BatchPlan.spread(40, 10, 1, groups), BatchPlan.continuous(40, 5, 1, groups, waves=2)):
        assert [sorted(groups[number] for number in lane) for lane in plan.lanes] == [list(range(10))] * 4
    uneven = [doc for doc, choices in enumerate((2, 7, 3, 4, 2, 5, 3, 6)) for _ in range(choices)]
    order = BatchPlan.spread(len(uneven), len(uneven), 3, uneven).lanes[0]
    places = {doc: [at for at, number in enumerate(order) if uneven[number] == doc] for doc in range(8)}
    for doc, found in places.items():
        assert min(b - a for a, b in zip(found, found[1:], strict=False)) >= len(uneven) // len(found) - 3, doc


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
