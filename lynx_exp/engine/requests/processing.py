"""Generation settings that change logits before a token is chosen: applied by transformers' own processors, to each
row by itself, or refused by name. They come from a model's generation_config.json and from a task. Checking a task's
needs neither torch nor transformers: scoring anew loads no model.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    from lynx_exp.engine.requests.plan import Request, Setting

NEUTRAL: Mapping[str, object] = {
    "sequence_bias": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
"""What is applied, in transformers' order: the value that changes nothing."""

SAMPLED: Mapping[str, object] = {
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}
"""What only sampling knows: greedy decoding leaves it aside, as transformers does; sampling refuses it."""

REFUSED: Mapping[str, object] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "guidance_scale": 1,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "constraints": None,
    "force_words_ids": None,
    "prompt_lookup_num_tokens": None,
    "watermarking_config": None,
    "max_time": None,
    "stop_strings": None,
    "token_healing": False,
}
"""What asks for another way of decoding: the value that does not."""

_SILENT = ("use_cache", "early_stopping", "length_penalty", "diversity_penalty", "pad_token_id", "renormalize_logits")
"""Of a task: without effect on what is decoded here."""


def settings_of(given: Mapping[str, object], where: str, *, sampled: bool = False) -> tuple[Setting, ...]:
    """Of generation settings those that change something, as a request has them. ValueError, beginning with `where`,
    for one that is not followed here. Names in no list above are the caller's to judge."""
    for name, neutral in REFUSED.items() | (SAMPLED.items() if sampled else set()):
        value = given.get(name)
        if value is not None and value != neutral:
            only = "" if name in REFUSED else " where tokens are drawn"
            raise ValueError(
                f"{where}{name}={value}: not followed{only}; each token is the most likely one, or drawn with "
                "temperature, top_p and top_k"
            )
    found = tuple((name, _frozen(given[name])) for name in NEUTRAL if given.get(name) not in (None, NEUTRAL[name]))
    for setting in found:
        try:
            _processor(*setting, eos=(0,), prompt=1, longest=2, device="cpu")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}{setting[0]}={setting[1]}: {' '.join(str(error).split())}") from error
    return found


def settings_of_task(given: Mapping[str, object], where: str, *, sampled: bool) -> tuple[Setting, ...]:
    """`settings_of` what a task asks for besides lengths, stops and sampling; an unknown name is refused, as
    transformers refuses it."""
    known = {*NEUTRAL, *SAMPLED, *REFUSED, *_SILENT}
    for name in given:
        if name not in known:
            raise ValueError(f"{where}{name}={given[name]}: unknown, or not followed here")
    return settings_of(given, where, sampled=sampled)


def settings_of_model(config: GenerationConfig | None) -> tuple[Setting, ...]:
    """`settings_of` a model's generation_config.json."""
    return () if config is None else settings_of(config.to_diff_dict(), "generation_config.json: ")


def drawing_of(config: GenerationConfig | None) -> dict[str, object]:
    """What a model's generation_config.json says of how tokens are drawn, but the temperature, which lm-eval always
    gives."""
    stated = {} if config is None else config.to_diff_dict()
    return {name: stated[name] for name in ("top_p", "top_k", *SAMPLED) if stated.get(name) is not None}


def refuse_drawing(stated: Mapping[str, object]) -> None:
    """ValueError for what `drawing_of` found and sampling here does not follow."""
    settings_of({name: stated[name] for name in SAMPLED if name in stated}, "generation_config.json: ", sampled=True)


def together(model: Sequence[Setting], own: Sequence[Setting]) -> tuple[Setting, ...]:
    """A model's settings, and over them a request's own, in the order in which they are applied."""
    merged = dict(model) | dict(own)
    return tuple((name, merged[name]) for name in NEUTRAL if name in merged)


def processed(
    requests: Sequence[Request], tokens: Sequence[Sequence[int]], logits_RV: Tensor, eos: Collection[int]
) -> Tensor:
    """fp32 logits as the settings of each request leave them after `tokens`, its response so far; the same tensor where
    none has any. `eos`: the model's own ids of the end."""
    if not any(request.processing for request in requests):
        return logits_RV
    import torch

    made_RV = logits_RV.float().clone()
    for row, (request, said) in enumerate(zip(requests, tokens, strict=True)):
        if request.processing:
            prompt, longest = len(request.prompt_ids), request.max_new_tokens
            apply = _processors(request.processing, tuple(sorted(eos)), prompt, longest, str(made_RV.device))
            ids = torch.tensor([[*request.prompt_ids, *said]], device=made_RV.device)
            made_RV[row] = apply(ids, made_RV[row : row + 1])[0]
    return made_RV


@lru_cache(maxsize=4096)
def _processors(
    settings: tuple[Setting, ...], eos: tuple[int, ...], prompt: int, longest: int, device: str
) -> LogitsProcessorList:
    from transformers import LogitsProcessorList

    made = [_processor(name, value, eos=eos, prompt=prompt, longest=longest, device=device) for name, value in settings]
    return LogitsProcessorList([processor for processor in made if processor is not None])


def _processor(
    name: str, value: object, *, eos: tuple[int, ...], prompt: int, longest: int, device: str
) -> LogitsProcessor | None:
    """transformers' own, as `generate` makes it; None for a length that needs an EOS where the model has none.
    `prompt`, `longest`: tokens of the prompt, and of the response at most."""
    import torch
    from transformers.generation import logits_process as theirs

    ends = list(eos)
    plain = _thawed(value)
    match name:
        case "sequence_bias":
            return theirs.SequenceBiasLogitsProcessor(plain)
        case "repetition_penalty":
            return theirs.RepetitionPenaltyLogitsProcessor(float(plain))
        case "no_repeat_ngram_size":
            return theirs.NoRepeatNGramLogitsProcessor(plain)
        case "bad_words_ids":
            return theirs.NoBadWordsLogitsProcessor(plain, torch.tensor(ends, device=device) if ends else None)
        case "min_length":
            return theirs.MinLengthLogitsProcessor(plain, ends, device=device) if ends else None
        case "min_new_tokens":
            return theirs.MinNewTokensLengthLogitsProcessor(prompt, plain, ends, device=device) if ends else None
        case "forced_bos_token_id":
            return theirs.ForcedBOSTokenLogitsProcessor(plain)
        case "forced_eos_token_id":
            return theirs.ForcedEOSTokenLogitsProcessor(prompt + longest, plain, device=device)
        case "remove_invalid_values":
            return theirs.InfNanRemoveLogitsProcessor()
        case "exponential_decay_length_penalty":
            return theirs.ExponentialDecayLengthPenalty(tuple(plain), ends, prompt) if ends else None
        case "suppress_tokens":
            return theirs.SuppressTokensLogitsProcessor(plain, device=device)
        case "begin_suppress_tokens":
            return theirs.SuppressTokensAtBeginLogitsProcessor(plain, prompt, device=device)
    raise AssertionError(name)


def _frozen(value: object) -> Hashable:
    """Lists and maps as tuples, so that a request can be compared and hashed."""
    if isinstance(value, Mapping):
        return tuple((_frozen(key), _frozen(inner)) for key, inner in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: object) -> Any:
    return [_thawed(inner) for inner in value] if isinstance(value, tuple) else value
