"""What the engine hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class ActiveRow(NamedTuple):
    """Distinct experts that the live rows of one lane ran in one layer of one decode step."""

    lane: int
    step: int
    layer: int
    live_rows: int
    active_experts: int


@dataclass(frozen=True, kw_only=True)
class LaneResult:
    """A lane that has completed. Lists over requests are in the order of `requests`, the plan's."""

    lane: int
    requests: tuple[int, ...]
    fillers: int = 0
    """How many of `requests`, at their end, only kept the lane full: they entered behind its own queue."""
    slots: tuple[int, ...] = ()
    """Of the lane, in which each request decoded; empty: as many as there are requests, in their order."""
    entered: tuple[int, ...] = ()
    """The lane's decode step that each request's second token came from (its first comes from the prompt); empty: all
    began with the lane."""
    token_ids: list[list[int]]
    """New tokens, EOS included; for scoring, the given continuation."""
    texts: list[str]
    """Decoded, cut before the stop string, special tokens left out; of a response that thinks the answer."""
    thoughts: list[str | None] = field(default_factory=list)
    """What became of each response's thought: `closed`, `cut` (the response was over before its end), `none`; None
    where nobody asked; empty: of none."""
    thought_tokens: list[int | None] = field(default_factory=list)
    """Tokens of each thought, the marker of its end included; likewise."""
    finish_reasons: list[str]
    """`eos`, `stop` (a stop string), `length`, `scored`; or `cut`: a filler, when the lane's last request had ended."""
    logprobs: list[float] | None = None
    """Scoring: summed log-likelihood (nats) of each continuation."""
    greedy: list[bool] | None = None
    """Scoring: whether every token was the most likely one."""
    live_rows: list[int]
    """Per decode step, fillers included."""
    scored_rows: list[int] = field(default_factory=list)
    """Per decode step: live rows that are no fillers; empty: all are."""
    active_experts: list[list[int]]
    """Per decode step and layer."""
    changed: list[list[int]] = field(default_factory=list)
    """Per decode step and layer: assignments changed, of top-k for each live row (`count_changed`)."""
    prompt_tokens: int = 0
    """Token rows of prefills in which a policy decided; 0: none did."""
    prompt_changed: list[int] = field(default_factory=list)
    """Per layer: their assignments changed, of top-k for each; empty: no policy decided there."""

    @property
    def own(self) -> int:
        """Requests that are no fillers."""
        return len(self.requests) - self.fillers

    def active_rows(self) -> list[ActiveRow]:
        return [
            ActiveRow(self.lane, step, layer, live, active)
            for step, (live, layers) in enumerate(zip(self.live_rows, self.active_experts, strict=True))
            for layer, active in enumerate(layers)
        ]


class Run:
    """All lanes of one `Engine.generate`, by request."""

    def __init__(self, lanes: list[LaneResult]) -> None:
        self.lanes = sorted(lanes, key=lambda lane: lane.lane)
        at = {request: (lane, slot) for lane in self.lanes for slot, request in enumerate(lane.requests[: lane.own])}
        self.places = {request: (lane.lane, slot) for request, (lane, slot) in at.items()}
        """request -> (lane, slot)"""
        ordered = [at[request] for request in sorted(at)]
        self.token_ids = [lane.token_ids[slot] for lane, slot in ordered]
        self.texts = [lane.texts[slot] for lane, slot in ordered]
        self.finish_reasons = [lane.finish_reasons[slot] for lane, slot in ordered]

    @property
    def active_experts(self) -> list[ActiveRow]:
        """One row per lane, decode step and layer; `pandas.DataFrame(run.active_experts)` has named columns."""
        return [row for lane in self.lanes for row in lane.active_rows()]
