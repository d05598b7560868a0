"""The transformers backend: one loaded MoE model that decodes, scores and times any policy.

`Engine` is the entry point to `lynx_exp.engine` and needs no configuration, tasks or results folder. `lynx-exp` uses
it through `lynx_exp.run`; a notebook can use it directly:

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
from lynx_exp.engine.decoding.lane_state import Keeper
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
"""Called after each step or pass with its number of tokens."""

CACHED_STORES = 2
"""How many sets of prefilled prompts stay in memory between calls."""


def _silent(*_args: object) -> None:
    """The default callback, which ignores its arguments."""


class Engine(OpenedModel):
    """A loaded model whose routers are known. A policy is attached for the duration of one call only."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_rows: int = 256,
        memory_gib: float | None = None,
        steps: StepsMode = "auto",
    ) -> None:
        """Wrap a loaded model, with the arguments of `from_pretrained`, which is the usual way to make an engine."""
        super().__init__(model, tokenizer, max_rows=max_rows, memory_gib=memory_gib, steps=steps)
        self._stores: OrderedDict[tuple[Prompt, ...], PromptStore] = OrderedDict()
        self._continues_prompts = attends_fully(model.config.get_text_config())
        """Whether a continuation can be scored against the cached keys and values of its prompt."""

    feeds_last_token = False
    """Whether scoring also feeds the last token of a continuation to the model, so that it takes a position."""

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
        """Decode prompts in lanes of `batch_size`. A lane drains: a finished request is not replaced.

        Args:
            prompts: Texts, or token ids.
            batch_size: Requests per lane; the policy sees the requests of one lane together.
            policy: Selects the experts; None for vanilla.
            phases: The phases in which the policy acts: decode, prefill, both or none.
            layers: The layers in which it acts, counted over those with routed experts ("1:" or "0,4:8"); None for all.
            max_new_tokens: Maximum number of tokens of a response.
            stop: A response ends before the first of these strings.
            ignore_eos: Continue after the end-of-sequence token, up to `max_new_tokens`.
            seed: Shuffles the prompts over the lanes; None keeps their order.
            sampling: Prompt i is sampled with `sampling.with_request_seed(i)`; None is greedy.
            on_step: Called with the number of tokens of each step.

        Returns:
            The responses in the order of the prompts, and the steps of each lane with their live rows and the number
            of active experts per layer.

        Raises:
            ValueError: A prompt does not fit the model's context, the policy cannot run on this model, or the model's
                generation_config.json contains a setting that this engine does not support.
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
        """Decode the lanes of a plan side by side.

        Args:
            requests: The requests; the plan refers to them by position.
            plan: Which requests share which lane, in which order.
            policy: Selects the experts; None for vanilla.
            phases: The phases in which the policy acts: decode, prefill, both or none.
            layers: The layers in which it acts, counted over those with routed experts ("1:" or "0,4:8"); None for all.
            lanes: Numbers of the lanes to run; None for all.
            on_step: Called with the number of tokens of each step.

        Yields:
            Each lane as it completes. In fp32 its tokens do not depend on the lanes that run beside it.

        Raises:
            ValueError: As for `generate`.
        """
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
        """Describe lanes of a plan under one policy, for `run_jobs`.

        Args:
            requests: The requests; the plan refers to them by position.
            plan: Which requests share which lane, in which order.
            policy: Selects the experts; None for vanilla.
            phases: The phases in which the policy acts: decode, prefill, both or none.
            layers: The layers in which it acts, counted over those with routed experts ("1:" or "0,4:8"); None for all.
            lanes: Numbers of the lanes to run; None for all.

        Returns:
            The job; nothing runs yet.

        Raises:
            ValueError: The policy cannot run on this model.
        """
        chosen = range(len(plan.lanes)) if lanes is None else lanes
        return Job(requests=requests, plan=plan, act=self.act(policy, phases, layers), lanes=tuple(chosen))

    def run_jobs(
        self,
        jobs: Sequence[Job],
        *,
        on_step: Callable[[int, int], None] = _silent,
        on_note: Callable[[str], None] = _silent,
        keeper: Keeper | None = None,
    ) -> Iterator[tuple[int, LaneResult]]:
        """Decode the lanes of several jobs in shared forward passes, whatever their policies and batch sizes.

        When memory runs out, the unfinished lanes start again with half as many rows.

        Args:
            jobs: Made by `job`.
            on_step: Called with the numbers of tokens and of rows of each step.
            on_note: Called with one line of text when execution departs from the plan, such as fewer rows.
            keeper: Takes the states of lanes between steps, and gives those of an earlier run; needs `keeps_lanes`.

        Yields:
            (position of the job, lane) as each lane completes. A lane's result does not depend on the other lanes.

        Raises:
            ValueError: A request does not fit the model's context.
            OutOfMemory: A single lane does not fit.
        """
        for job in jobs:
            check_lengths(job.requests, self.context_length)
        # Rows can join and leave a running batch only if each owns a slot of the key-value cache. A model whose cache
        # has none (recurrent state, say) decodes each lane as one padded batch from start to end.
        if self.has_slots:
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
                budget=self._budget() * 3 // 4,  # the prompt store has the other quarter
                least_rows=EXACT_ROWS if self.experts_implementation == PER_EXPERT_EXACT else 1,
                on_step=on_step,
                on_note=on_note,
                keeper=keeper,
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
        """Compute log-likelihoods of the requests' continuations, teacher-forced: in one pass, without a decode loop.

        Args:
            requests: Requests that have `continuation_ids`.
            plan: Which requests share which lane, in which order.
            policy: Selects the experts; None for vanilla.
            phases: The phases in which the policy acts: decode, prefill, both or none.
            layers: The layers in which it acts, counted over those with routed experts ("1:" or "0,4:8"); None for all.
            lanes: Numbers of the lanes to score; None for all.
            scoring: "decode" treats each continuation token as a decode row, which equals decoding these lanes step by
                step. "prefill" treats all tokens as prefill rows; with lanes of one request, in fp32, it equals
                lm-eval's `hf` model at batch size 1 bit for bit.
            on_step: Called with the number of tokens of each pass.

        Yields:
            Each lane, with `logprobs` (nats, summed per continuation) and `greedy` of its requests.

        Raises:
            ValueError: A request does not fit the model's context, or has no continuation.
            NotANumber: The model's logits are NaN along a continuation.
        """
        check_lengths(requests, self.context_length, feeds_last_token=self.feeds_last_token)
        act = self.act(policy, phases, layers)
        attachment = Attachment(self.routers, act.policy, phases, layers)
        store = self._scoring_store(requests, plan, [act]) if scoring == "decode" else None
        wanted = set(range(len(plan.lanes)) if lanes is None else lanes)
        # A pack always runs as a whole, so that the last bits of a lane do not depend on which other lanes the caller
        # requested: a resumed cell must give the same bytes as one that was never interrupted.
        for pack in passes(requests, plan, self.model, scoring):
            if wanted.intersection(pack):
                scored = score_pack(self.model, self.routers, attachment, requests, plan, pack, store, scoring, on_step)
                yield from (lane for lane in scored if lane.lane in wanted)

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
        """Measure how far a policy moves the next-token distributions away from vanilla's, on the continuations.

        Args:
            requests: Requests that have `continuation_ids`.
            plan: Which requests share which lane, in which order.
            policy: Selects the experts; None for vanilla.
            phases: The phases in which the policy acts: decode, prefill, both or none.
            layers: The layers in which it acts, counted over those with routed experts ("1:" or "0,4:8"); None for all.
            on_step: Called with the number of tokens of each pass.

        Yields:
            For each request, the KL divergence from vanilla (nats, summed over its tokens) and the number of tokens at
            which both predict the same most likely token.

        Raises:
            ValueError: As for `score_lanes`.
        """
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
        """Run `fidelity` for several policies with a single vanilla pass for all of them.

        Args:
            requests: Requests that have `continuation_ids`.
            plan: Which requests share which lane, in which order.
            acts: Policies with their phases and layers, each made by `act`.
            tokens: Positions in `acts` for which the results also hold one value per token.
            on_step: Called with the number of tokens of each pass.

        Yields:
            For each act and request the result of `fidelity`; its `act` is the position in `acts`.

        Raises:
            ValueError: As for `score_lanes`.
        """
        check_lengths(requests, self.context_length, feeds_last_token=self.feeds_last_token)
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
        """Search the value of a policy's knob at which `target` experts are active on the continuations.

        Args:
            policy: A policy with a knob (`Policy.knob`).
            target: Active experts per layer and step, on average; below 1, a fraction of vanilla's number.
            requests: Requests that have `continuation_ids`.
            plan: Which requests share which lane, in which order.
            phases: The phases in which the policy acts: decode, prefill, both or none.
            layers: The layers in which it acts; None for all.
            on_step: Called with the number of tokens of each pass.

        Returns:
            The policy and its active experts: the nearest value where the knob cannot reach the target.

        Raises:
            ValueError: The policy has no knob, or the target lies outside K..E of this model.
        """

        def active(candidate: Policy | None) -> float:
            lanes = self.score_lanes(requests, plan, candidate, phases, layers=layers, on_step=on_step)
            return mean_active(lanes)

        shape = ModelShape(num_experts=self.num_experts, top_k=self.top_k)
        return match_active(policy, target, shape, active)

    _fastest_experts = choose_experts
    measure, measure_windows = timed.measure, timed.measure_windows
    measure_prefill, breakdown, selection_time = timed.measure_prefill, timed.breakdown, timed.selection_time

    def _store(self, order: tuple[Prompt, ...]) -> PromptStore:
        """The store that prefills these prompts, in this order.

        The last few stores are cached: cells that differ only in their policy have the same prompts.
        """
        if order not in self._stores:
            while len(self._stores) >= CACHED_STORES:
                self._stores.popitem(last=False)
            self._stores[order] = PromptStore(self.model, order, self._budget() // 4)
        self._stores.move_to_end(order)
        return self._stores[order]

    def _scoring_store(self, requests: Sequence[Request], plan: BatchPlan, acts: Sequence[Act]) -> PromptStore | None:
        """The store whose prompts are prefilled once, or None where each pass must contain its prompts."""
        if self._continues_prompts and not all(act.prefills for act in acts):
            return self._store(plan_order(requests, plan))
        return None
