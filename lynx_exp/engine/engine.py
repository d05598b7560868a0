"""The transformers backend: one loaded MoE that decodes, scores and is timed under any policy.

engine = Engine.from_pretrained("lynx_tiny")
run = engine.generate(prompts, batch_size=16, policy=build_policy("lynx", alpha=3.0, beta=2), max_new_tokens=64)
timing = engine.measure(prompts, batch_size=16, policies={"quarter": build_policy("lynx_v1_latency", keep_experts=4)})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lynx_exp.engine.fidelity import Fidelity, compare_pack
from lynx_exp.engine.generate import generate_pack
from lynx_exp.engine.match import Matched, match_active, mean_active
from lynx_exp.engine.measure import Timing, measure
from lynx_exp.engine.plan import BatchPlan, Request
from lynx_exp.engine.results import LaneResult, Run
from lynx_exp.engine.score import score_pack
from lynx_exp.engine.selection import selection_time
from lynx_exp.engine.stopping import Stopper
from lynx_exp.models import (
    Attachment,
    bind,
    find_calibration,
    find_routers,
    load_model,
    random_model,
    resolve_device,
    resolve_dtype,
)
from lynx_exp.routing import ModelShape, Phases, Policy

OnStep = Callable[[int], None]
"""Called with the number of tokens just produced."""

LOGITS_BYTES = 2**31
"""fp32 logits of one scoring pass, unless a single lane has more."""


def _silent(tokens: int) -> None:
    """Progress that nobody watches."""


class Engine:
    """A loaded model with its routers found. Policies are attached for the length of a call only."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, *, max_rows: int = 64
    ) -> None:
        """`max_rows`: rows of a physical batch at most; a larger lane runs alone. It changes speed, never tokens.

        Raises UnsupportedModel (a ValueError) for a model without routers of a known form.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows}: must be at least 1")
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        self.routers = find_routers(model)
        self.calibration: str | None = None
        self._bound: dict[Policy, Policy] = {}
        self._stopper = Stopper(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        experts_implementation: str = "auto",
        trust_remote_code: bool = False,
        max_rows: int = 64,
    ) -> Engine:
        """Load `lynx_tiny` (bundled), a folder in `save_pretrained` form, or a hub id. ValueError, in one line, if it
        cannot be."""
        where = resolve_device(device)
        loaded, tokenizer = load_model(
            model,
            dtype=resolve_dtype(dtype, where),
            device=where,
            revision=revision,
            experts_implementation=_experts(experts_implementation, where),
            trust_remote_code=trust_remote_code,
        )
        engine = cls(loaded, tokenizer, max_rows=max_rows)
        engine.calibration = find_calibration(model)
        return engine

    @classmethod
    def from_config(
        cls,
        model_type: str,
        config: Mapping[str, Any],
        *,
        seed: int = 0,
        dtype: str = "auto",
        device: str = "auto",
        experts_implementation: str = "auto",
        max_rows: int = 64,
    ) -> Engine:
        """A model of any transformers architecture with random weights and no tokenizer: prompts are token ids."""
        where = resolve_device(device)
        built = random_model(
            model_type,
            dict(config),
            seed=seed,
            dtype=resolve_dtype(dtype, where),
            device=where,
            experts_implementation=_experts(experts_implementation, where),
        )
        return cls(built, None, max_rows=max_rows)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def num_layers(self) -> int:
        """Layers with routed experts."""
        return len(self.routers)

    @property
    def num_experts(self) -> int:
        return self.routers[0].num_experts

    @property
    def top_k(self) -> int:
        return self.routers[0].top_k

    def bind(self, policy: Policy) -> Policy:
        """The policy as this model runs it, with its calibration; ValueError, with the reason, if it cannot."""
        if policy not in self._bound:
            self._bound[policy] = bind(policy, self.routers, self.calibration)
        return self._bound[policy]

    def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids with the tokenizer's special tokens; ids pass through."""
        if not isinstance(prompt, str):
            return tuple(prompt)
        if self.tokenizer is None:
            raise ValueError("prompts: this model has no tokenizer; give token ids")
        return tuple(self.tokenizer(prompt).input_ids)

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
        on_step: OnStep = _silent,
    ) -> Run:
        """Decode greedily in lanes of `batch_size`, in the order given (or shuffled, with a `seed`).

        The policy acts in `phases` and `layers`: numbers and ranges such as "1:" or "0,4:8"; None is all.
        """
        requests = [
            Request(prompt_ids=self.encode(p), max_new_tokens=max_new_tokens, stop=tuple(stop), ignore_eos=ignore_eos)
            for p in prompts
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
        attachment = Attachment(self.routers, policy and self.bind(policy), phases, layers)
        for pack in self._packs(requests, plan, lanes):
            yield from generate_pack(self.model, self.routers, attachment, self._stopper, requests, plan, pack, on_step)

    def score_lanes(
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
        """Log-likelihoods of the requests' continuations, teacher-forced: what decoding them in these lanes would
        have given."""
        attachment = Attachment(self.routers, policy and self.bind(policy), phases, layers)
        for pack in self._packs(requests, plan, lanes, self._scored_rows(requests)):
            yield from score_pack(self.model, self.routers, attachment, requests, plan, pack, on_step)

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
        attachment = Attachment(self.routers, policy and self.bind(policy), phases, layers)
        for pack in self._packs(requests, plan, None, self._scored_rows(requests)):
            yield from compare_pack(self.model, self.routers, attachment, requests, plan, pack, on_step)

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
        """`policy` with its knob set so that `target` experts are active, mean over layers and full decode steps, on
        the requests' continuations. A target below 1 is that share of what vanilla activates there."""

        def active(candidate: Policy | None) -> float:
            lanes = self.score_lanes(requests, plan, candidate, phases, layers=layers, on_step=on_step)
            return mean_active(lanes, max(map(len, plan.lanes)))

        if policy.knob is not None and target < 1:
            target = max(target * active(None), float(self.top_k))
        if not self.top_k <= target <= self.num_experts:
            raise ValueError(
                f"match_active={target:g}: must lie in {self.top_k}..{self.num_experts}, this model's K..E"
            )
        shape = ModelShape(num_experts=self.num_experts, top_k=self.top_k)
        return match_active(policy, target, shape, active)

    def selection_time(self, policy: Policy, prompts: Sequence[Sequence[int]]) -> float:
        """Microseconds per layer that the policy's selection takes in one decode step of a lane of `prompts`."""
        return selection_time(self.model, self.routers, self.bind(policy), prompts)

    def measure(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        batch_size: int,
        policies: Mapping[str, Policy],
        phases: Phases = "decode",
        layers: str | None = None,
        new_tokens: int = 32,
        repeats: int = 5,
        on_step: OnStep = _silent,
    ) -> Timing:
        """Time decode steps of one lane, the first `batch_size` prompts, under vanilla and each policy, interleaved."""
        if len(prompts) < batch_size:
            raise ValueError(f"batch_size={batch_size}: only {len(prompts)} prompts given to measure")
        encoded = [self.encode(prompt) for prompt in prompts[:batch_size]]
        bound = {name: self.bind(policy) for name, policy in policies.items()}
        with torch.inference_mode():
            return measure(self.model, self.routers, encoded, bound, phases, layers, new_tokens, repeats, on_step)

    def _packs(
        self, requests: Sequence[Request], plan: BatchPlan, lanes: Iterable[int] | None, max_rows: int | None = None
    ) -> Iterator[list[int]]:
        """Lanes that go through the model together; ValueError first if a request does not fit its context."""
        self._check_lengths(requests)
        return plan.packs(range(len(plan.lanes)) if lanes is None else lanes, max_rows or self.max_rows)

    def _scored_rows(self, requests: Sequence[Request]) -> int:
        """Rows of a pack whose logits are all kept: with a large vocabulary those are most of the memory."""
        longest = max((len(request.continuation_ids) for request in requests), default=1)
        row_bytes = 4 * longest * self.model.get_input_embeddings().num_embeddings
        return max(1, min(self.max_rows, LOGITS_BYTES // max(row_bytes, 1)))

    def _check_lengths(self, requests: Sequence[Request]) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for number, request in enumerate(requests):
            length = len(request.prompt_ids) + max(request.max_new_tokens, len(request.continuation_ids))
            if limit is not None and length > limit:
                raise ValueError(
                    f"request {number}: prompt and response need {length} positions; the model has {limit}"
                )


def _experts(name: str, device: torch.device) -> str | None:
    """How experts are computed. `auto`: transformers' per-expert loop on a CPU, where it reads only active experts,
    else its choice."""
    if name == "auto":
        return "eager" if device.type == "cpu" else None
    return name
