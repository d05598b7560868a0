"""Windows of consecutive decode steps, drawn from what a run did: who was live, how far, beside whom.

A run is kept as the tokens of its responses, with slot and entry step of each. From these the state of any lane before
any of its steps follows: a request that entered at step e is fed its token t - e in step t, and is live in as many
steps as it has tokens, less one (its first token comes from the prompt, its last is never fed).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, cycle, islice, takewhile
from random import Random


@dataclass(frozen=True)
class Seat:
    """A live request in one decode step."""

    row: int
    """Its place among the lane's requests, or the window's contexts."""
    slot: int
    position: int
    """Of the token that is fed: so many tokens, prompt included, came before it."""


@dataclass(frozen=True, kw_only=True)
class LaneRun:
    """What one lane did. Sequences over requests have one order, whichever."""

    subtask: str
    lane: int
    prompts: Sequence[Sequence[int]]
    tokens: Sequence[Sequence[int]]
    """New tokens of each response; of a scored choice, its continuation."""
    slots: Sequence[int]
    entered: Sequence[int]
    """The decode step that is the first to feed one of its tokens."""

    @cached_property
    def num_steps(self) -> int:
        """Decode steps of the lane."""
        ends = (entered + len(tokens) - 1 for entered, tokens in zip(self.entered, self.tokens, strict=True))
        return max(ends, default=0)

    def seats(self, step: int) -> list[Seat]:
        """Who is live in the step, by slot."""
        found = []
        for row, (entered, tokens) in enumerate(zip(self.entered, self.tokens, strict=True)):
            if entered <= step < entered + len(tokens) - 1:
                found.append(Seat(row, self.slots[row], len(self.prompts[row]) + step - entered))
        return sorted(found, key=lambda seat: seat.slot)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive decode steps of a lane, with all that they need."""

    subtask: str
    lane: int
    start: int
    """The lane's step that is the window's first."""
    contexts: tuple[tuple[int, ...], ...]
    """Of each request that is live in it: prompt and new tokens, up to the last that the window feeds."""
    steps: tuple[tuple[Seat, ...], ...]

    @property
    def most_rows(self) -> int:
        return max(map(len, self.steps))

    @property
    def positions(self) -> int:
        """Of its longest row."""
        return max(map(len, self.contexts))

    def tokens(self, step: int) -> list[int]:
        """What is fed in the window's step of this number, by seat."""
        return [self.contexts[seat.row][seat.position] for seat in self.steps[step]]

    @property
    def before(self) -> tuple[tuple[int, ...], ...]:
        """The contexts up to the first token that the window feeds of each."""
        first: dict[int, int] = {}
        for step in self.steps:
            for seat in step:
                first.setdefault(seat.row, seat.position)
        return tuple(context[: first[row]] for row, context in enumerate(self.contexts))

    def mean_context(self, step: int) -> float:
        """Positions that a row attends to, the token that is fed included."""
        return sum(seat.position + 1 for seat in self.steps[step]) / len(self.steps[step])

    def cut(self) -> Window:
        """Its first steps, as long as nobody enters or leaves."""
        first = [(seat.row, seat.slot) for seat in self.steps[0]]
        kept = tuple(takewhile(lambda step: [(seat.row, seat.slot) for seat in step] == first, self.steps))
        return replace(self, steps=kept)


def window_of(run: LaneRun, start: int, steps: int) -> Window:
    """The window of so many of the lane's steps from `start` on."""
    seats = [run.seats(step) for step in range(start, start + steps)]
    ends: dict[int, int] = {}
    for step in seats:
        for seat in step:
            ends[seat.row] = seat.position + 1
    # rows are numbered anew: the window knows only those that live in it
    rows = {row: number for number, row in enumerate(ends)}
    contexts = tuple((*run.prompts[row], *run.tokens[row])[:end] for row, end in ends.items())
    return Window(
        subtask=run.subtask,
        lane=run.lane,
        start=start,
        contexts=contexts,
        steps=tuple(tuple(replace(seat, row=rows[seat.row]) for seat in step) for step in seats),
    )


def draw_windows(runs: Sequence[LaneRun], steps: int, most: int, seed: int) -> Iterator[Window]:
    """Up to `most` windows of `steps` steps, each place of the run as likely as any other, none twice: the windows'
    steps are a sample of the run's. ValueError if no lane is long enough."""
    # drawn by place, not by lane: a long lane has more windows, as it has more steps
    places = list(accumulate((max(run.num_steps - steps + 1, 0) for run in runs), initial=0))
    if not places[-1]:
        longest = max((run.num_steps for run in runs), default=0)
        raise ValueError(
            f"measure.new_tokens={steps}: the longest lane of this run has {longest} decode steps; "
            + ("there is nothing to time" if not longest else f"give at most {longest}")
        )
    for place in Random(seed).sample(range(places[-1]), min(most, places[-1])):
        number = next(number for number in range(len(runs)) if place < places[number + 1])
        yield window_of(runs[number], place - places[number], steps)


def cut_or_repeat(tokens: Sequence[int], length: int) -> tuple[int, ...]:
    """The tokens, repeated or cut."""
    return tuple(islice(cycle(tokens), length))


def at_context(window: Window, length: int) -> Window:
    """The window as it would be if every row had `length` tokens before it: its own, repeated or cut; the tokens that
    are fed stay."""
    first: dict[int, int] = {}
    for step in window.steps:
        for seat in step:
            first.setdefault(seat.row, seat.position)
    before = [cut_or_repeat(own[: first[row]], length) for row, own in enumerate(window.contexts)]
    contexts = tuple((*before[row], *own[first[row] :]) for row, own in enumerate(window.contexts))
    steps = tuple(
        tuple(replace(seat, position=seat.position - first[seat.row] + length) for seat in step)
        for step in window.steps
    )
    return replace(window, contexts=contexts, steps=steps)
