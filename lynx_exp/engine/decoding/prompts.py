"""Prompts prefilled once, for every lane, policy and batch size that decodes from them; a shared prefix once for all.

Which prompts go through the model together follows from the ordered list of all prompts alone, never from which lanes
ask: so a prompt's keys and values are bit for bit the same in a packed sweep, in a cell run alone, and after a resume.

n rows, N positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from os.path import commonprefix

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lynx_exp.engine.kv_cache.batch import POSITIONS, left_pad
from lynx_exp.engine.kv_cache.slots import Prefilled, Slots, keeps_states, prompt_cache
from lynx_exp.engine.kv_cache.states import states_of
from lynx_exp.engine.requests.argmax import most_likely
from lynx_exp.engine.requests.plan import BatchPlan, Request
from lynx_exp.engine.requests.processing import processed
from lynx_exp.engine.requests.sampling import Draw
from lynx_exp.models import Rows

Prompt = tuple[int, ...]

CHUNK_ROWS = 64
CHUNK_TOKENS = 8192
"""Of one prefill pass, prefix included, unless a single prompt has more."""
LEAST_PREFIX = 32
"""A shared prefix of fewer tokens is not worth a pass of its own."""


class PromptStore:
    """Prefilled prompts, the oldest dropped when they need more than `most_bytes`."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], most_bytes: int) -> None:
        """`prompts`: all of them, in the order in which lanes will ask for them; repeated ones count once."""
        self._model, self._most_bytes = model, most_bytes
        unique = list(dict.fromkeys(prompts))
        self._prefix_length = 0 if pads_left(model) else _prefix_length(unique)
        self._prefix: tuple[list[Tensor], list[Tensor]] | None = None
        self._chunks = _chunks(unique)
        self._place = {prompt: (c, row) for c, chunk in enumerate(self._chunks) for row, prompt in enumerate(chunk)}
        self._made: OrderedDict[int, Prefilled] = OrderedDict()

    @torch.inference_mode()
    def get(self, prompt: Prompt) -> tuple[Prefilled, int]:
        """(the prefill that holds it, its row there)."""
        number, row = self._place[prompt]
        if number not in self._made:
            made = self._prefill(self._chunks[number])
            while self._made and sum(m.nbytes for m in self._made.values()) + made.nbytes > self._most_bytes:
                self._made.popitem(last=False)
            self._made[number] = made
        self._made.move_to_end(number)
        return self._made[number], row

    def _prefill(self, prompts: list[Prompt]) -> Prefilled:
        shared = self._prefix_length
        if not shared:
            return prefill(self._model, prompts)
        if self._prefix is None:
            cache = prompt_cache(self._model.config)
            run_prompts(self._model, [prompts[0][:shared]], cache)
            held = attention_layers(cache)
            self._prefix = [layer.keys for layer in held], [layer.values for layer in held]
        return prefill(self._model, prompts, self._prefix)


def plan_order(requests: Sequence[Request], plan: BatchPlan) -> tuple[Prompt, ...]:
    """The prompts of all requests, in the order of the plan, then those that are in no lane: the same for any batch
    size with the same seed."""
    order = [number for lane in plan.lanes for number in lane]
    others = sorted(set(range(len(requests))).difference(order)) if plan.fillers else []
    return tuple(requests[number].prompt_ids for number in (*order, *others))


def gather(config: PretrainedConfig, places: Sequence[tuple[Prefilled, int]], columns: int) -> DynamicCache:
    """A cache that holds prefilled prompts, one a row, right-padded to `columns`."""
    made = places[0][0]
    slots = Slots(made, len(places), columns)
    together: dict[int, tuple[Prefilled, list[int], list[int]]] = {}
    for slot, (prefilled, row) in enumerate(places):
        _, into, of = together.setdefault(id(prefilled), (prefilled, [], []))
        into.append(slot)
        of.append(row)
    for prefilled, into, of in together.values():
        slots.load(into, prefilled, of)
    cache = DynamicCache(config=config)
    for layer, key, value in zip(cache.layers, slots.keys, slots.values, strict=True):
        layer.update(key, value)
    return cache


def prefill(
    model: PreTrainedModel, prompts: Sequence[Prompt], prefix: tuple[list[Tensor], list[Tensor]] | None = None
) -> Prefilled:
    """One pass over prompts; those positions that `prefix` holds are not computed again."""
    if pads_left(model):
        assert prefix is None
        return _prefill_left(model, prompts)
    cache = prompt_cache(model.config)
    shared = 0
    if prefix is not None:
        shared = prefix[0][0].shape[2]
        for layer, key, value in zip(_for_attention(cache), *prefix, strict=True):
            layer.update(key.expand(len(prompts), -1, -1, -1), value.expand(len(prompts), -1, -1, -1))
    logits = run_prompts(model, [prompt[shared:] for prompt in prompts], cache, shared)

    def own(made: Tensor) -> Tensor:
        return made[:, :, shared:].clone() if shared else made

    return Prefilled(
        keys=[own(layer.keys) for layer in attention_layers(cache)],
        values=[own(layer.values) for layer in attention_layers(cache)],
        prefix=prefix,
        lengths=[len(prompt) for prompt in prompts],
        logits=logits,
    )


def _for_attention(cache: DynamicCache) -> list[DynamicLayer]:
    return [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]


def attention_layers(cache: DynamicCache) -> list[DynamicLayer]:
    """The layers of a cache that hold keys and values."""
    return [layer for layer in _for_attention(cache) if layer.is_initialized]


def pads_left(model: PreTrainedModel) -> bool:
    """Whether prompts of unequal length are padded on the left when they are prefilled: into states, unlike into keys
    and values, padding behind a prompt would run."""
    return keeps_states(model.config.get_text_config())


def _prefill_left(model: PreTrainedModel, prompts: Sequence[Prompt]) -> Prefilled:
    """One pass over prompts padded on the left; their keys and values are moved to where they stand in slots."""
    device = model.get_input_embeddings().weight.device
    cache = prompt_cache(model.config)
    ids_RN, real_RN = left_pad(prompts, device)
    padded = not bool(real_RN.all())
    logits = model(
        input_ids=ids_RN,
        attention_mask=real_RN.long() if padded else None,
        position_ids=(real_RN.long().cumsum(-1) - 1).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    before = [ids_RN.shape[1] - len(prompt) for prompt in prompts]

    def moved(made: Tensor) -> Tensor:
        return torch.stack([row.roll(-pad, 1) for row, pad in zip(made, before, strict=True)]) if padded else made

    return Prefilled(
        keys=[moved(layer.keys) for layer in attention_layers(cache)],
        values=[moved(layer.values) for layer in attention_layers(cache)],
        prefix=None,
        lengths=[len(prompt) for prompt in prompts],
        logits=logits,
        states=states_of(cache),
    )


def first_tokens(
    requests: Sequence[Request], places: Sequence[tuple[Prefilled, int]], eos: Collection[int] = ()
) -> list[int]:
    """The token after each prompt; `places`: the prefill that holds it and its row there. A prefill serves many
    requests, so that it keeps its most likely tokens and never those that one of them drew. `eos`: as in `processed`.
    """
    draw = Draw.of([request.sampling for request in requests])
    if draw is None and not any(request.processing for request in requests):
        return [prefilled.first_tokens[row] for prefilled, row in places]
    logits_RV = torch.stack([prefilled.logits[row] for prefilled, row in places])
    logits_RV = processed(requests, [()] * len(requests), logits_RV, eos)
    if draw is None:
        return most_likely(logits_RV).tolist()
    return draw(logits_RV, [0] * len(draw.rows)).tolist()


def run_prompts(model: PreTrainedModel, prompts: Sequence[Prompt], cache: DynamicCache, start: int = 0) -> Tensor:
    """`[n, V]` logits after each prompt, which begins at position `start`. Padding comes last, where causal attention
    keeps it from every real token, so that no mask is needed."""
    device = model.get_input_embeddings().weight.device
    width = max(map(len, prompts))
    ids_RN = torch.tensor([list(p) + [0] * (width - len(p)) for p in prompts], device=device)
    last_R = torch.tensor([len(p) - 1 for p in prompts], device=device)
    rows_R = torch.arange(len(prompts), device=device)

    def only_last(_head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows_R, last_R][:, None], *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(only_last)
    try:
        return model(
            input_ids=ids_RN,
            position_ids=torch.arange(start, start + width, device=device).expand(len(prompts), -1),
            past_key_values=cache,
            use_cache=True,
        ).logits[:, 0]
    finally:
        hook.remove()


def prompt_rows_of(
    prompts: Sequence[Prompt], slots: Sequence[int], key: int, device: torch.device, *, left: bool
) -> Rows:
    """Who the token rows of a prefill of one lane are; `slots`: of each prompt in the lane; `left`: as `pads_left`."""
    width = max(map(len, prompts))
    length_R1 = torch.tensor([len(p) for p in prompts])[:, None]
    position_RN = torch.arange(width) - (width - length_R1 if left else 0 * length_R1)
    real_RN = (position_RN >= 0) & (position_RN < length_R1)
    row_RN = torch.tensor(slots)[:, None] * POSITIONS + position_RN.clamp_min(0)
    live = real_RN.flatten().to(device)
    return Rows(
        decode=torch.zeros_like(live),
        lane=torch.zeros(live.shape[0], dtype=torch.long, device=device),
        live=live,
        num_lanes=1,
        key=torch.tensor([key], device=device),
        row=row_RN.flatten().to(device),
        phase="prefill",
    )


def _prefix_length(prompts: list[Prompt]) -> int:
    """Tokens that all prompts begin with; each keeps one of its own at least."""
    if len(prompts) < 2:
        return 0
    shared = min(len(commonprefix([min(prompts), max(prompts)])), min(map(len, prompts)) - 1)
    return shared if shared >= LEAST_PREFIX else 0


def _chunks(prompts: list[Prompt]) -> list[list[Prompt]]:
    chunks: list[list[Prompt]] = []
    longest = 0
    for prompt in prompts:
        longest = max(longest, len(prompt))
        if not chunks or len(chunks[-1]) == CHUNK_ROWS or (len(chunks[-1]) + 1) * longest > CHUNK_TOKENS:
            chunks.append([])
            longest = len(prompt)
        chunks[-1].append(prompt)
    return chunks
