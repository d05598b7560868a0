"""A lane on its way: a queue of requests and the slots that they pass through."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.requests.argmax import NO_TOKEN, NotANumber
from lynx_exp.engine.requests.plan import BatchPlan, Request
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.engine.requests.thoughts import Answer


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """Lanes of one plan under one policy: what a cell asks of the engine."""

    requests: Sequence[Request]
    plan: BatchPlan
    act: Act
    lanes: Sequence[int]
    """Numbers of the plan's lanes to run."""

    @property
    def widths(self) -> list[int]:
        """Rows of each of its lanes."""
        return [self.plan.width(number) for number in self.lanes]

    def without(self, lane: int) -> Job:
        """The same but for one lane."""
        return replace(self, lanes=tuple(number for number in self.lanes if number != lane))


CUT = "cut"
"""How a filler ends that the end of its lane has cut."""


class Row:
    """One request being decoded."""

    def __init__(self, request: Request, number: int, slot: int, stopper: Stopper, filler: bool = False) -> None:
        self.request, self.number, self.slot, self.filler = request, number, slot, filler
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.entered = 0
        """The lane's decode step that is the first to feed one of its tokens."""
        self._stopper = stopper
        end = request.think_end
        self._answer: int | None = None if end is not None and end.opened else 0
        """Where tokens begin that hold the last end of its thoughts; None: inside one."""

    def take(self, token: int) -> None:
        if token == NO_TOKEN:
            raise NotANumber(
                f"request {self.number}: the model's logits are no numbers after {len(self.tokens)} tokens"
            )
        self.tokens.append(token)
        if token in self._stopper.eos_ids and not self.request.ignore_eos:
            self.finish = "eos"
        elif self._is_stopped():
            self.finish = "stop"
        elif len(self.tokens) == self.request.max_new_tokens:
            self.finish = "length"

    def _is_stopped(self) -> bool:
        stop, end = self.request.stop, self.request.think_end
        if end is None:
            return bool(stop) and self._stopper.hit(self.tokens, stop)
        begin = self._stopper.marker(self.tokens, end)
        self._answer = self._answer if begin is None else begin
        return bool(stop) and self._stopper.hit_thinking(self.tokens, stop, end, self._answer)

    @property
    def positions(self) -> int:
        """That the model has seen of it: all tokens but the last."""
        return len(self.request.prompt_ids) + len(self.tokens) - 1

    def about(self) -> dict[str, Any]:
        """What there is to it besides its tokens, as JSON; `again` makes it anew."""
        return {
            "request": self.number,
            "slot": self.slot,
            "filler": self.filler,
            "tokens": len(self.tokens),
            "finish": self.finish,
            "entered": self.entered,
            "answer": self._answer,
        }

    @classmethod
    def again(cls, request: Request, stopper: Stopper, about: Mapping[str, Any], tokens: list[int]) -> Row:
        """The row that gave `about`."""
        row = cls(request, about["request"], about["slot"], stopper, about["filler"])
        row.tokens, row.finish, row.entered, row._answer = tokens, about["finish"], about["entered"], about["answer"]
        return row

    def answer(self) -> Answer:
        """What it says, thought and answer apart."""
        return self._stopper.answer(self.tokens, self.request.stop, self.request.think_end, self.finish)


@dataclass(eq=False)
class Lane:
    """`width` slots; requests enter them in the order of the queue, as soon as one is free; behind it fillers do, while
    a request of the queue is live. The lane is over when none is."""

    job: int
    number: int
    act: int
    queue: list[int]
    width: int
    fillers: list[int] = field(default_factory=list)
    """Those that have not entered."""
    place: int = -1
    """Among the lanes that are being decoded."""
    began: int = 0
    """The step before which it entered."""
    admissions: int = 0
    """Times that requests have entered."""
    scored: int = 0
    """Live rows that are no fillers."""
    free: list[int] = field(init=False)
    """Slots, lowest first."""
    rows: list[Row] = field(default_factory=list)
    """In the order in which they entered."""
    live_rows: list[int] = field(default_factory=list)
    """A decode step."""
    scored_rows: list[int] = field(default_factory=list)
    """Likewise, without fillers."""
    prompt_tokens: int = 0
    prompt_changed: Tensor | None = None
    """`[L]`; None: no policy decides in its prefills."""
    earlier: Tensor | None = None
    """`[steps, 2, L]`: active experts and assignments changed of the steps that an earlier run has done; None: it began
    in this one."""

    def __post_init__(self) -> None:
        self.free = list(range(self.width))

    @property
    def live(self) -> int:
        return self.width - len(self.free)

    @property
    def reserved(self) -> int:
        """Rows of the physical batch that it holds or will need again."""
        return self.width if self.queue or self.fillers else self.live

    def entering(self) -> tuple[list[int], bool]:
        """(the requests that enter its free slots now, whether they are fillers), taken out of what waits."""
        if self.queue:
            numbers, self.queue = self.queue[: len(self.free)], self.queue[len(self.free) :]
            return numbers, False
        if not self.fillers or not self.scored:
            return [], True
        numbers, self.fillers = self.fillers[: len(self.free)], self.fillers[len(self.free) :]
        return numbers, True

    def enter(self, row: Row) -> None:
        """A row takes its slot, which is no longer among the free ones; one that is over already gives it back."""
        self.rows.append(row)
        if row.finish is not None:
            insort(self.free, row.slot)
        elif not row.filler:
            self.scored += 1

    def leave(self, row: Row) -> None:
        """A live row is over."""
        insort(self.free, row.slot)
        if not row.filler:
            self.scored -= 1

    @property
    def is_over(self) -> bool:
        """Whether none of its own requests waits or is live: its fillers, if any, are to be cut."""
        return not self.queue and not self.scored

    def cut(self) -> list[Row]:
        """End the fillers that are live, which are still to leave."""
        live = [row for row in self.rows if row.finish is None]
        self.fillers = []
        for row in live:
            row.finish = CUT
        return live

    def count(self) -> None:
        """A decode step of its live rows begins."""
        self.live_rows.append(self.live)
        self.scored_rows.append(self.scored)

    def result(self, active_experts: list[list[int]], changed: list[list[int]] | None = None) -> LaneResult:
        """`changed`: None where nobody counted."""
        answers = [row.answer() for row in self.rows]
        return LaneResult(
            lane=self.number,
            requests=tuple(row.number for row in self.rows),
            fillers=sum(row.filler for row in self.rows),
            slots=tuple(row.slot for row in self.rows),
            entered=tuple(row.entered for row in self.rows),
            token_ids=[row.tokens for row in self.rows],
            texts=[answer.text for answer in answers],
            thoughts=[answer.thought for answer in answers],
            thought_tokens=[answer.thought_tokens for answer in answers],
            finish_reasons=[str(row.finish) for row in self.rows],
            live_rows=self.live_rows,
            scored_rows=self.scored_rows,
            active_experts=active_experts,
            changed=changed or [],
            prompt_tokens=self.prompt_tokens,
            prompt_changed=[] if self.prompt_changed is None else self.prompt_changed.tolist(),
        )


def lanes_of(jobs: Sequence[Job], acts: Sequence[Act]) -> Iterator[Lane]:
    """The lanes of all jobs, those first whose first request comes first in their plan: jobs over the same requests
    then ask for the same prompts at about the same time."""
    found = []
    for number, job in enumerate(jobs):
        starts, start = [], 0
        for members in job.plan.lanes:
            starts.append(start)
            start += len(members)
        for lane_number in job.lanes:
            queue = list(job.plan.lanes[lane_number])
            lane = Lane(
                job=number,
                number=lane_number,
                act=acts.index(job.act),
                queue=queue,
                width=job.plan.width(lane_number),
                fillers=list(job.plan.fillers_of(lane_number)),
            )
            found.append((starts[lane_number], number, lane))
    yield from (lane for _, _, lane in sorted(found, key=lambda item: item[:2]))
