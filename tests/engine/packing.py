"""Jobs of any kind, decoded packed and lane by lane: what tests of streams share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import lynx_exp.engine.decoding.entering as entering
import lynx_exp.engine.decoding.lane_state as lane_state
from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, LaneResult, Request
from lynx_exp.engine.decoding.lane import Job, Row
from tests.engine.conftest import shape_of
from tests.routing.laws import REPRESENTATIVES, bound

LENGTHS = (3, 20, 7, 64, 1, 18, 100, 4, 13, 65, 3, 8)


@contextmanager
def watched(engine: Engine, max_rows: int, eos: Sequence[int] = ()) -> Iterator[dict[int, list[Tensor]]]:
    """The engine with nothing kept, other EOS ids, and, by id of a request, the logits of its decode steps."""
    seen: dict[int, list[Tensor]] = {}
    fresh: Iterator[Tensor] = iter(())
    kind, row, rows, ids = engine._make_decoder(), Row, engine.max_rows, engine._stopper.eos_ids

    class Decoder:
        def __init__(self, *given: Any) -> None:
            self.inner = kind(*given)

        def step(self, token_R: Tensor) -> Tensor:
            nonlocal fresh
            logits = self.inner.step(token_R)
            fresh = iter(logits.clone())
            return logits

    class Seen(Row):
        def take(self, token: int) -> None:
            if self.tokens:  # the first comes from the prefill
                seen.setdefault(id(self.request), []).append(next(fresh))
            super().take(token)

    engine._stores.clear()
    lane_state.Row = Seen  # type: ignore[attr-defined,misc]
    engine._decoder, entering.Row, engine.max_rows = Decoder, Seen, max_rows  # type: ignore[assignment,attr-defined,misc]
    engine._stopper.eos_ids = frozenset(eos)
    try:
        yield seen
    finally:
        lane_state.Row = row  # type: ignore[attr-defined,misc]
        engine._decoder, entering.Row, engine.max_rows, engine._stopper.eos_ids = kind, row, rows, ids  # type: ignore[attr-defined,misc]


def run(engine: Engine, jobs: Sequence[Job]) -> dict[tuple[int, int], LaneResult]:
    found = [((number, lane.lane), lane) for number, lane in engine.run_jobs(jobs)]
    assert len(dict(found)) == len(found), "a lane came twice"
    return dict(found)


def assert_packed_equals_alone(
    engine: Engine, jobs: Sequence[Job], max_rows: int, eos: Sequence[int] = (), bits: bool = True
) -> int:
    """Also that logits are equal, bit for bit unless `bits` is False; how many rows of them were compared."""
    with watched(engine, max_rows, eos) as packed_logits:
        packed = run(engine, jobs)
    assert set(packed) == {(number, lane) for number, job in enumerate(jobs) for lane in job.lanes}
    compared = 0
    for (number, lane), together in packed.items():
        with watched(engine, 1, eos) as logits:
            assert run(engine, [replace(jobs[number], lanes=(lane,))])[0, lane] == together
        once = _in_one_lane(jobs[number])
        for request, rows in logits.items():
            if request not in once:
                continue  # it has logits in each of its lanes, watched under one name
            for mine, theirs in zip(rows, packed_logits[request], strict=True):
                assert torch.equal(mine, theirs) or not bits
                assert torch.allclose(mine, theirs, rtol=0, atol=1e-6)
            compared += len(rows)
    return compared


def _in_one_lane(job: Job) -> set[int]:
    """Ids of the requests that only one lane decodes: one that fills lanes may stand in several."""
    fillers = job.plan.fillers or [()] * len(job.plan.lanes)
    places = Counter(number for lane in job.lanes for number in {*job.plan.lanes[lane], *fillers[lane]})
    return {id(job.requests[number]) for number, count in places.items() if count == 1}


def copies(requests: Sequence[Request], **changes: Any) -> list[Request]:
    """Requests of their own for each job, so that what is watched can be told apart."""
    return [replace(request, **changes) for request in requests]


@st.composite
def jobs_of(draw: st.DrawFn, engine: Engine, requests: Sequence[Request]) -> list[Job]:
    jobs = []
    for _ in range(draw(st.integers(1, 4))):
        policy = bound(draw(st.sampled_from(REPRESENTATIVES)), shape_of(engine))
        phases = draw(st.sampled_from(["decode", "prefill", "both", "none"]))
        layers = draw(st.sampled_from([None, None, "1:", "0,2"]))
        size, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2))
        if draw(st.booleans()):
            plan = BatchPlan.static(len(requests), size, seed)
        else:
            own = draw(st.integers(1, len(requests)))
            plan = BatchPlan.continuous(own, size, seed, waves=draw(st.integers(1, 3)))
            if draw(st.booleans()):
                plan = plan.filled(range(own, len(requests)), range(len(requests)), seed)
        chosen = draw(st.none() | st.just([len(plan.lanes) - 1]))
        jobs.append(engine.job(copies(requests), plan, policy, phases, layers=layers, lanes=chosen))
    return jobs


def wide_jobs(engine: Engine, requests: Sequence[Request], of: int) -> list[Job]:
    """Every kind of lane: two policies that add or take slots, two batchings, and vanilla between them."""
    more = build_policy("oea", k0=1, k_max=engine.top_k + 1)
    fewer = build_policy("lynx_v1_latency", keep_experts=engine.num_experts // 2)
    n = len(requests)
    jobs = [
        engine.job(copies(requests), BatchPlan.static(n, 3), more),
        engine.job(copies(requests), BatchPlan.continuous(n, 2, waves=3)),
        engine.job(copies(requests), BatchPlan.continuous(n, 5, waves=2), fewer),
        engine.job(copies(requests), BatchPlan.static(n, 4, 1), build_policy("coverage", tolerance=0.2), "both"),
    ]
    return jobs[:of]
