"""What whoever runs cells asks of an engine: the transformers one (`Engine`), or one over a serving engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from lynx_exp.engine.decoding.fidelity import Fidelity
from lynx_exp.engine.decoding.lane import Job
from lynx_exp.engine.decoding.match import Matched
from lynx_exp.engine.decoding.score import Scoring
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.requests.plan import BatchPlan, Request, Setting
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.engine.timing.breakdown import Breakdown
from lynx_exp.engine.timing.measure import Timing
from lynx_exp.engine.timing.prefill_timing import PrefillTiming
from lynx_exp.engine.timing.window_timing import WindowTiming
from lynx_exp.engine.timing.windows import Window
from lynx_exp.routing import Phases, Policy


class LaneEngine(Protocol):
    """A loaded model that decodes, scores and is timed in lanes. The methods are `Engine`'s, and documented there."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def context_length(self) -> int | None: ...

    @property
    def processing(self) -> tuple[Setting, ...]: ...

    @property
    def drawing(self) -> dict[str, object]: ...

    @property
    def feeds_last_token(self) -> bool: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def experts_implementation(self) -> str | None: ...

    def act(self, policy: Policy | None, phases: Phases = ..., layers: str | None = ...) -> Act: ...

    def job(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = ...,
        phases: Phases = ...,
        *,
        layers: str | None = ...,
        lanes: Iterable[int] | None = ...,
    ) -> Job: ...

    def run_jobs(
        self,
        jobs: Sequence[Job],
        *,
        on_step: Callable[[int, int], None] = ...,
        on_note: Callable[[str], None] = ...,
    ) -> Iterator[tuple[int, LaneResult]]: ...

    def run_lanes(
        self, requests: Sequence[Request], plan: BatchPlan, policy: Policy | None = ..., phases: Phases = ...
    ) -> Iterator[LaneResult]: ...

    def score_lanes(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = ...,
        phases: Phases = ...,
        *,
        layers: str | None = ...,
        lanes: Iterable[int] | None = ...,
        scoring: Scoring = ...,
        on_step: Callable[[int], None] = ...,
    ) -> Iterator[LaneResult]: ...

    def fidelity_of(
        self, requests: Sequence[Request], plan: BatchPlan, acts: Sequence[Act], *, tokens: Collection[int] = ...
    ) -> Iterator[Fidelity]: ...

    def match_active(
        self,
        policy: Policy,
        target: float,
        requests: Sequence[Request],
        plan: BatchPlan,
        phases: Phases = ...,
        *,
        layers: str | None = ...,
    ) -> Matched: ...

    def selection_time(self, policy: Policy, prompts: Sequence[Sequence[int]]) -> float: ...

    def measure(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int,
        policies: Mapping[str, Policy],
        phases: Phases = ...,
        layers: str | None = ...,
        new_tokens: int = ...,
        repeats: int = ...,
        max_repeats: int | None = ...,
        precision: float = ...,
        on_step: Callable[[int], None] = ...,
    ) -> Timing: ...

    def measure_windows(
        self,
        windows: Sequence[Window],
        *,
        policies: Mapping[str, Policy],
        phases: Phases = ...,
        layers: str | None = ...,
        repeats: int = ...,
        least: int | None = ...,
        precision: float = ...,
        on_step: Callable[[int], None] = ...,
    ) -> WindowTiming: ...

    def measure_prefill(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int,
        policies: Mapping[str, Policy],
        phases: Phases = ...,
        layers: str | None = ...,
        repeats: int = ...,
        max_repeats: int | None = ...,
        precision: float = ...,
    ) -> PrefillTiming: ...

    def breakdown(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int,
        policies: Mapping[str, Policy],
        phases: Phases = ...,
        layers: str | None = ...,
        new_tokens: int = ...,
        repeats: int = ...,
    ) -> Breakdown: ...

    def close(self) -> None: ...
