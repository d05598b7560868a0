"""Run jobs as a stream: of recorded steps where these work, else of steps launched from Python; out of memory, what had
not finished starts again with half the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedModel

from lynx_exp.engine.decoding.captured_stream import CapturedStream
from lynx_exp.engine.decoding.graph import CannotRecord
from lynx_exp.engine.decoding.lane import Job
from lynx_exp.engine.decoding.lane_state import Keeper
from lynx_exp.engine.decoding.lead import LaunchAhead
from lynx_exp.engine.decoding.prompts import PromptStore
from lynx_exp.engine.decoding.steps import Steps
from lynx_exp.engine.decoding.stream import MakeDecoder, OnStep, Stream
from lynx_exp.engine.kv_cache.memory import OutOfMemory, is_out_of_memory
from lynx_exp.engine.requests.argmax import NotANumber
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.models import Router
from lynx_exp.models.rank_agreement import group_of
from lynx_exp.routing.backends.triton.kernels.fallback import reason_of


def run_stream(
    model: PreTrainedModel,
    routers: Sequence[Router],
    make_decoder: Callable[[], MakeDecoder],
    stopper: Stopper,
    jobs: Sequence[Job],
    stores: Sequence[PromptStore],
    *,
    steps: Steps,
    experts: Callable[[int], str | None],
    max_rows: int,
    budget: int,
    least_rows: int,
    on_step: OnStep,
    on_note: Callable[[str], None],
    keeper: Keeper | None = None,
) -> Iterator[tuple[int, LaneResult]]:
    """(number of the job, lane) for each lane as it completes. `budget`, `least_rows`: as in `Stream`; `steps`: how
    they run, and where a recording fails from then on; `experts`: as in `CapturedStream`."""
    while True:
        stream: Stream | CapturedStream | None = None  # the slots of one that failed go before others are made
        widths = [width for job in jobs for width in job.widths]
        # no more rows than the lanes that are left can fill
        rows = min(max(max_rows, *widths), sum(widths)) if widths else 0
        # a new decoder each time: the one before is bound to slots that are gone
        given = model, routers, make_decoder(), stopper, jobs, stores
        try:
            capture = steps.capture_for(jobs)
            if capture is not None and widths:  # it has all its seats, whoever is there
                rows = max(max_rows, *widths)
            if capture is None:
                stream = Stream(
                    *given,
                    max_rows=max_rows,
                    budget=budget,
                    least_rows=least_rows,
                    on_step=on_step,
                    keeper=keeper,
                )
            else:
                lead = LaunchAhead(steps.always_leads)
                stream = CapturedStream(
                    *given,
                    max_rows=max_rows,
                    budget=budget,
                    on_step=on_step,
                    capture=capture,
                    lead=lead,
                    experts=experts,
                    keeper=keeper,
                )
                if stream.seats:
                    steps.began(given[2], stream.seats, stream.experts)
            for number, lane in stream.run():
                # what was yielded is done: a stream that has to start again leaves it out
                jobs = [job.without(lane.lane) if at == number else job for at, job in enumerate(jobs)]
                yield number, lane
            return
        except Exception as error:
            # a step that cannot be recorded can still be launched from Python; wrong numbers and full memory cannot be
            # helped so
            if isinstance(stream, CapturedStream) and not is_out_of_memory(error) and not isinstance(error, NotANumber):
                steps.refuse(str(error) if isinstance(error, CannotRecord) else reason_of(error))
                on_note(steps.note)
                continue
            if not is_out_of_memory(error) or group_of(routers) is not None:  # other ranks would not know
                raise
            widest = max((width for job in jobs for width in job.widths), default=0)
            if rows <= widest:
                raise OutOfMemory(widest, rows) from error
            # half of what failed, but a lane cannot be divided
            max_rows = max(rows // 2, widest)
            on_note(f"out of memory; going on with {max_rows} rows at a time")
