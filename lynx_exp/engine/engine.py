"""The transformers backend: one loaded MoE that decodes, scores and is timed under any policy.

engine = Engine.from_pretrained("lynx_tiny")
run = engine.generate(prompts, batch_size=16, policy=build_policy("lynx", alpha=3.0, beta=2), max_new_tokens=64)
timing = engine.measure(prompts, batch_size=16, policies={"quarter": build_policy("lynx_v1_latency", keep_experts=4)})
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lynx_exp.engine.decoding.batching import batching
from lynx_exp.engine.decoding.fidelity import Fidelity, compare_pack
from lynx_exp.engine.decoding.generate import run_padded
from lynx_exp.engine.decoding.lane import Job
from lynx_exp.engine.decoding.match import Matched, match_active, mean_active
from lynx_exp.engine.decoding.pretrained import OpenedModel
from lynx_exp.engine.decoding.prompts import Prompt, PromptStore, plan_order
from lynx_exp.engine.decoding.score import Scoring, passes, score_pack
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.decoding.steps import StepsMode
from lynx_exp.engine.decoding.streams import run_stream
from lynx_exp.engine.kv_cache.slots import attends_fully
from lynx_exp.engine.requests.plan import BatchPlan, Request, check_lengths
from lynx_exp.engine.requests.results import LaneResult, Run
from lynx_exp.engine.requests.sampling import Sampling
from lynx_exp.engine.timing import engine_timing as timed
from lynx_exp.engine.timing.fastest_experts import choose_experts, stream_experts
from lynx_exp.models import Attachment
from lynx_exp.models.experts import EXACT_ROWS, PER_EXPERT_EXACT
from lynx_exp.routing import ModelShape, Phases, Policy

OnStep = Callable[[int], None]
"""Called with the number of tokens just produced."""

KEPT_STORES = 2
"""Sets of prefilled prompts that stay in memory between calls."""


def _silent(*_said: object) -> None:
    """Progress that nobody watches."""


class Engine(OpenedModel):
    """A loaded model with its routers found. Policies are attached for the length of a call only."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_rows: int = 256,
        memory_gib: float | None = None,
        steps: StepsMode = "auto",
    ) -> None:
        """As `LoadedModel`; for most, `Engine.from_pretrained` is the way in."""
        super().__init__(model, tokenizer, max_rows=max_rows, memory_gib=memory_gib, steps=steps)
        self._stores: OrderedDict[tuple[Prompt, ...], PromptStore] = OrderedDict()
        self._continues_prompts = attends_fully(model.config.get_text_config())
        """Whether continuations are scored behind prompts that were prefilled before."""

    feeds_last = False
    """Whether the last token of a continuation that is scored goes through the model, and takes a position."""

    batching = batching

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        batch_size: int,
        policy: Policy | None = None,
        phases: Phases = "decode",
        layers: str | None = None,
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        seed: int | None = None,
        sampling: Sampling | None = None,
        on_step: OnStep = _silent,
    ) -> Run:
        """Decode in lanes of `batch_size`, in the order given (or shuffled, with a `seed`): greedily, or prompt i with
        `sampling.with_request_seed(i)`.

        The policy acts in `phases` and `layers`: numbers and ranges such as "1:" or "0,4:8"; None is all.
        """
        encoded, processing = [self.encode(prompt) for prompt in prompts], self.processing
        requests = [
            Request(
                prompt_ids=ids,
                max_new_tokens=max_new_tokens,
                stop=tuple(stop),
                ignore_eos=ignore_eos,
                sampling=sampling and sampling.with_request_seed(number),
                processing=processing,
            )
            for number, ids in enumerate(encoded)
        ]
        if seed is None:
            plan = BatchPlan.in_order(len(requests), batch_size)
        else:
            plan = BatchPlan.static(len(requests), batch_size, seed)
        return Run(list(self.run_lanes(requests, plan, policy, phases, layers=layers, on_step=on_step)))

    def run_lanes(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = None,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        lanes: Iterable[int] | None = None,
        on_step: OnStep = _silent,
    ) -> Iterator[LaneResult]:
        """Decode the plan's lanes (or only `lanes` of it), packed; each is handed over as it completes."""
        job = self.job(requests, plan, policy, phases, layers=layers, lanes=lanes)
        yield from (lane for _, lane in self.run_jobs([job], on_step=lambda tokens, rows: on_step(tokens)))

    def job(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = None,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        lanes: Iterable[int] | None = None,
    ) -> Job:
        """Lanes of a plan (None: all) under a policy, for `run_jobs`."""
        chosen = range(len(plan.lanes)) if lanes is None else lanes
        return Job(requests=requests, plan=plan, act=self.act(policy, phases, layers), lanes=tuple(chosen))

    def run_jobs(
        self,
        jobs: Sequence[Job],
        *,
        on_step: Callable[[int, int], None] = _silent,
        on_note: Callable[[str], None] = _silent,
    ) -> Iterator[tuple[int, LaneResult]]:
        """Decode the lanes of all jobs, of any policies and batch sizes, side by side; (number of the job, lane) as
        each completes. What a lane gives does not depend on the others. Out of memory, it goes on with half the rows
        and says so to `on_note`."""
        for job in jobs:
            check_lengths(job.requests, self.context_length)
        if self.has_slots:
            exact = self.experts_implementation == PER_EXPERT_EXACT
            yield from run_stream(
                self.model,
                self.routers,
                self._make_decoder,
                self._stopper,
                jobs,
                [self._store(plan_order(job.requests, job.plan)) for job in jobs],
                steps=self.steps,
                experts=partial(stream_experts, self),
                max_rows=self.max_rows,
                budget=self._budget() * 3 // 4,
                least_rows=EXACT_ROWS if exact else 1,
                on_step=on_step,
                on_note=on_note,
            )
            return
        self.steps.hold_back("its cache has no slots, whose rows come and go")
        yield from run_padded(self.model, self.routers, self._stopper, jobs, max_rows=self.max_rows, on_step=on_step)

    def score_lanes(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = None,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        lanes: Iterable[int] | None = None,
        scoring: Scoring = "decode",
        on_step: OnStep = _silent,
    ) -> Iterator[LaneResult]:
        """Log-likelihoods of the requests' continuations, teacher-forced: what decoding them in these lanes would
        have given; or, with `scoring="prefill"`, what one pass over prompts and continuations gives, all of their
        tokens being prefill rows: in lanes of one, the bits of lm-eval's `hf` model at batch size 1 in fp32."""
        check_lengths(requests, self.context_length, feeds_last=self.feeds_last)
        act = self.act(policy, phases, layers)
        attachment = Attachment(self.routers, act.policy, phases, layers)
        store = self._scoring_store(requests, plan, [act]) if scoring == "decode" else None
        wanted = set(range(len(plan.lanes)) if lanes is None else lanes)
        # A pack is always run whole, so that a lane's bits do not depend on which others were asked for.
        for pack in passes(requests, plan, self.model, scoring):
            if wanted.intersection(pack):
                found = score_pack(self.model, self.routers, attachment, requests, plan, pack, store, scoring, on_step)
                yield from (lane for lane in found if lane.lane in wanted)

    def fidelity(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        on_step: OnStep = _silent,
    ) -> Iterator[Fidelity]:
        """How far the policy moves the next-token distributions from vanilla's on the requests' continuations."""
        yield from self.fidelity_of(requests, plan, [self.act(policy, phases, layers)], on_step=on_step)

    def fidelity_of(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        acts: Sequence[Act],
        *,
        tokens: Collection[int] = (),
        on_step: OnStep = _silent,
    ) -> Iterator[Fidelity]:
        """`fidelity` of several policies (bound), for which vanilla goes through the model once; of those whose numbers
        are in `tokens` token by token, too."""
        check_lengths(requests, self.context_length, feeds_last=self.feeds_last)
        store = self._scoring_store(requests, plan, acts)
        for pack in passes(requests, plan, self.model):
            yield from compare_pack(self.model, self.routers, acts, requests, plan, pack, store, on_step, tokens)

    def match_active(
        self,
        policy: Policy,
        target: float,
        requests: Sequence[Request],
        plan: BatchPlan,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        on_step: OnStep = _silent,
    ) -> Matched:
        """`policy` with its knob set so that `target` experts are active, mean over layers and scored tokens, on
        the requests' continuations. A target below 1 is that share of what vanilla activates there."""

        def active(candidate: Policy | None) -> float:
            lanes = self.score_lanes(requests, plan, candidate, phases, layers=layers, on_step=on_step)
            return mean_active(lanes)

        shape = ModelShape(num_experts=self.num_experts, top_k=self.top_k)
        return match_active(policy, target, shape, active)

    _fastest_experts = choose_experts
    measure, measure_windows = timed.measure, timed.measure_windows
    measure_prefill, breakdown, selection_time = timed.measure_prefill, timed.breakdown, timed.selection_time

    def _store(self, order: tuple[Prompt, ...]) -> PromptStore:
        """Of these prompts in this order; the last few are kept for the next cell."""
        if order not in self._stores:
            while len(self._stores) >= KEPT_STORES:
                self._stores.popitem(last=False)
            self._stores[order] = PromptStore(self.model, order, self._budget() // 4)
        self._stores.move_to_end(order)
        return self._stores[order]

    def _scoring_store(self, requests: Sequence[Request], plan: BatchPlan, acts: Sequence[Act]) -> PromptStore | None:
        """None where prompts must go through the model with their continuations."""
        if self._continues_prompts and not all(act.prefills for act in acts):
            return self._store(plan_order(requests, plan))
        return None
