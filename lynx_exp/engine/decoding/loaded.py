"""A loaded model with its routers found, and what all that runs or times it needs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lynx_exp.engine.decoding.decoder import Decoder, choose_decoder, decodes_in_slots
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.decoding.slot_batch import SlotBatch
from lynx_exp.engine.decoding.steps import Steps, StepsMode
from lynx_exp.engine.decoding.stream import MakeDecoder
from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.engine.kv_cache.memory import memory_budget
from lynx_exp.engine.kv_cache.slots import attends_fully, has_slots
from lynx_exp.engine.requests.plan import Setting
from lynx_exp.engine.requests.processing import drawing_of, settings_of_model
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.models import bind, find_routers, from_first, fuse
from lynx_exp.models.rank_agreement import group_of
from lynx_exp.models.slotless import refuse_unbatched
from lynx_exp.routing import Phases, Policy


class LoadedModel:
    """A transformers model with its tokenizer, routers and kind of decode steps; no policy is attached to it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_rows: int = 256,
        memory_gib: float | None = None,
        steps: StepsMode = "auto",
    ) -> None:
        """`max_rows`: rows of a physical batch at most, unless a lane is wider; `memory_gib`: for keys and values
        (None: half of a CPU's available memory, 80 % of a GPU's). They change speed, never tokens. `steps`: how decode
        steps run (`Steps`).

        Raises UnsupportedModel (a ValueError) for a model without routers of a known form.
        """
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows}: must be at least 1")
        if memory_gib is not None and not memory_gib > 0:
            raise ValueError(f"memory_gib={memory_gib}: must be above 0")
        self.model, self.tokenizer, self.max_rows, self.memory_gib = model, tokenizer, max_rows, memory_gib
        self.routers = find_routers(model)
        self.router_note = fuse(self.routers)  # why they run as the model's own; None: they are fused, or on a CPU
        self.calibration: str | None = None
        self.partial: str | None = None
        """Which weights its checkpoint lacked, or had too many; None: it was whole."""
        self._bound: dict[Policy, Policy] = {}
        self._stopper = Stopper(model.generation_config, tokenizer)
        self._decoder: type[Decoder] | None = None
        self.auto_experts = False
        """Whether `measure` may choose how experts are computed."""
        self.experts_note: str | None = None
        """A way of computing experts that it could not try, and why."""
        self.steps = Steps(steps, model, self.routers)
        self._fastest: dict[int, tuple[str | None, Mapping[str, float]]] = {}
        """Of each number of rows: why few_rows was not tried, and what the others took."""

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
        """The policy as this model runs it, with its calibration.

        Args:
            policy: Built by `build_policy`, or an instance of a policy's class.

        Returns:
            The same policy, or a copy that knows what this model needs.

        Raises:
            ValueError: The model cannot run it; the message has the reason.
        """
        if policy not in self._bound:
            self._bound[policy] = bind(policy, self.routers, self.calibration)
        return self._bound[policy]

    def act(self, policy: Policy | None, phases: Phases = "decode", layers: str | None = None) -> Act:
        """A policy, bound to this model, and where it acts.

        Args:
            policy: None for vanilla.
            phases: In which phases of a token the policy acts: decode, prefill, both or none.
            layers: Where it acts, as numbers and ranges of layers with routed experts; None for all.

        Returns:
            What `fidelity_of` takes.

        Raises:
            ValueError: As `bind`; or the model would answer wrongly in a batch.
        """
        refuse_unbatched({"model_type": self.model.config.get_text_config().model_type})
        return Act(policy=policy and self.bind(policy), phases=phases, layers=layers)

    @property
    def experts_implementation(self) -> str | None:
        """How the model computes its experts."""
        return self.model.config.get_text_config()._experts_implementation

    @property
    def context_length(self) -> int | None:
        """Positions of the model; None: it names no limit."""
        return context_of(self.model.config.get_text_config())

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return self.model.get_input_embeddings().num_embeddings

    @cached_property
    def has_slots(self) -> bool:
        """Whether rows may enter and leave at any time."""
        config = self.model.config.get_text_config()  # where it hangs on more than full attention, it is tried
        return has_slots(config) and (attends_fully(config) or decodes_in_slots(self.model))

    @property
    def keeps_lanes(self) -> bool:
        """Whether `run_jobs` can continue within a lane. False where rows cannot enter at any time, since the cache is
        the model's own, and on several ranks, each of which holds its own share of the keys and values."""
        return self.has_slots and group_of(self.routers) is None

    @property
    def processing(self) -> tuple[Setting, ...]:
        """What the model's own generation_config.json changes of its logits. ValueError for what is not followed."""
        return settings_of_model(self.model.generation_config)

    @property
    def drawing(self) -> dict[str, object]:
        """What it says of how tokens are drawn, for requests that do not say it themselves."""
        return drawing_of(self.model.generation_config)

    def close(self) -> None:
        """Nothing to do: a model goes when nobody holds it any more."""

    def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a prompt.

        Args:
            prompt: A text, which gets the tokenizer's special tokens, or ids, which stay as they are.

        Returns:
            The ids.

        Raises:
            ValueError: A text, and the model has no tokenizer.
        """
        if not isinstance(prompt, str):
            return tuple(prompt)
        if self.tokenizer is None:
            raise ValueError("prompts: this model has no tokenizer; give token ids")
        return tuple(self.tokenizer(prompt).input_ids)

    def _lane_alone(self, prompts: Sequence[Sequence[int]], room: int) -> Batch | SlotBatch:
        if self.has_slots:
            return SlotBatch(self.model, self._make_decoder(), prompts, room)
        return Batch(self.model, prompts, [0] * len(prompts), [0], room=room)

    def _budget(self) -> int:
        """Bytes for keys and values, the same on every rank."""
        return from_first(memory_budget(self.device, self.memory_gib), self.routers)

    def _plain_decoder(self) -> type[Decoder]:
        if self._decoder is None:
            self._decoder = choose_decoder(self.model)
        return self._decoder

    def _make_decoder(self) -> MakeDecoder:
        return self.steps.decoder(self._plain_decoder())


def context_of(config: PretrainedConfig) -> int | None:
    """Positions that a model of this configuration has; None: it names no limit.

    With longrope those before other factors take over: which they would for all rows of a physical batch, by its
    longest, so that lanes would no longer give what they give alone.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return getattr(config, "max_position_embeddings", None)
