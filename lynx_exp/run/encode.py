"""What a cell asks of the engine: token ids of its tasks' requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lynx_exp.run.batch_plan import numbered_requests
from lynx_exp.run.planned_cell import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lynx_exp.engine import LaneEngine, Request, Sampling
    from lynx_exp.tasks import TaskRequest


def encode_requests(task: Task, engine: LaneEngine, truncate: str = "error", seed: int = 0) -> list[Request]:
    """Token ids of the task's requests, and all else the engine must know of them.

    As lm-eval's `hf` model encodes them: prompts with their special tokens, unless they begin with the text of BOS; a
    choice's continuation is what the tokens of prompt and continuation together have more than those of the prompt; its
    last token is scored and never fed. A request that does not fit the model's context loses the beginning of its
    prompt with `truncate="left"`; otherwise ValueError names it, as one whose tokens the model does not have. `seed`:
    of sampling.
    """
    from lynx_exp.engine import Request
    from lynx_exp.engine.requests.processing import together

    generates = task.kind == "generate"
    prompts, continuations = _prompts(task, engine) if generates else _choices(task, engine)
    # else the embedding would fail later with an index error, or on a GPU take the process with it
    _check_known(task, engine, [*prompts, *continuations])
    readable = engine.tokenizer is not None  # else no stop string can be found
    end = _text_of_eos(engine.tokenizer)
    made: list[Request] = []
    repeats: dict[tuple[str, int], int] = {}
    for number, (request, ids, more) in enumerate(zip(numbered_requests(task), prompts, continuations, strict=True)):
        room = request.max_new_tokens if generates else len(more) - (0 if engine.feeds_last_token else 1)
        truncate = "left" if number >= len(task.requests) else truncate  # of fillers nobody reads the answer
        ids = _fit(ids, room, engine.context_length, truncate, f"{task.name}: request {number}")
        if generates:
            # EOS may also come as its text, letter by letter, which lm-eval cuts off as well
            stop = tuple(request.until) + end if readable else ()
            # the n-th request of a document draws with the n-th seed, whatever stands between them
            repeat = repeats[request.subtask, request.doc_id] = repeats.get((request.subtask, request.doc_id), -1) + 1
            sampling = sampling_of(request, repeat, seed, engine.drawing)
            made.append(
                Request(
                    prompt_ids=tuple(ids),
                    max_new_tokens=room,
                    stop=stop,
                    sampling=sampling,
                    processing=together(engine.processing, request.processing),
                    think_end=request.think_end,
                )
            )
        else:
            made.append(Request(prompt_ids=tuple(ids), continuation_ids=tuple(more)))
    return made


def sampling_of(
    request: TaskRequest, repeat: int, seed: int, drawing: Mapping[str, Any] | None = None
) -> Sampling | None:
    """How the request draws its tokens: by a seed of its own, so that neither its lane nor its batch-mates matter.
    None if it is greedy. `drawing`: what the model's generation_config.json says of drawing, where the task says
    nothing. ValueError for what of it is not followed."""
    if request.temperature == 0:
        return None
    from lynx_exp.engine.requests.processing import refuse_drawing

    stated = drawing or {}
    refuse_drawing(stated)
    from lynx_exp.engine import Sampling

    own = hashlib.sha256(f"{seed} {request.subtask} {request.doc_id} {repeat}".encode()).digest()
    return Sampling(
        temperature=request.temperature,
        top_p=float(stated.get("top_p", 1.0)) if request.top_p is None else request.top_p,
        top_k=(stated.get("top_k") or None) if request.top_k is None else request.top_k,
        seed=int.from_bytes(own[:8]) >> 1,
    )


def _fit(ids: list[int], room: int, context: int | None, truncate: str, what: str) -> list[int]:
    if context is None or len(ids) + room <= context:
        return ids
    if truncate == "left" and room < context:
        return ids[len(ids) + room - context :]
    hint = "" if truncate == "left" else "; truncate=left cuts such prompts at their beginning"
    if room >= context:
        hint = "; task.generation.max_gen_toks bounds what is generated"
    raise ValueError(
        f"{what}: a prompt of {len(ids)} tokens and {room} more do not fit the model's {context} positions{hint}"
    )


def _check_known(task: Task, engine: LaneEngine, encoded: Sequence[Sequence[int]]) -> None:
    """ValueError for a token that the model has no embedding of: a tokenizer that is not its own."""
    if engine.tokenizer is None:
        return
    for number, ids in enumerate(encoded):
        if ids and max(ids) >= engine.vocabulary:
            raise ValueError(
                f"{task.name}: request {number % len(numbered_requests(task))}: its text has token {max(ids)}, and the "
                f"model's embedding {engine.vocabulary} rows: the tokenizer beside the weights is that of another model"
            )


def _prompts(task: Task, engine: LaneEngine) -> tuple[list[list[int]], list[list[int]]]:
    texts = [request.prompt for request in numbered_requests(task)]
    return _encode(engine, texts), [[]] * len(texts)


def _choices(task: Task, engine: LaneEngine) -> tuple[list[list[int]], list[list[int]]]:
    """White space at the end of a prompt belongs to the continuation, whose first token it is part of."""
    contexts, wholes = [], []
    for request in numbered_requests(task):
        context = request.prompt.rstrip()
        contexts.append(context)
        wholes.append(request.prompt + (request.continuation or ""))
    before, together = _encode(engine, contexts), _encode(engine, wholes)
    continuations = [whole[len(ids) :] for ids, whole in zip(before, together, strict=True)]
    return [ids or _prefix(engine) for ids in before], continuations


def _prefix(engine: LaneEngine) -> list[int]:
    """What stands before a continuation without a prompt: BOS, else EOS."""
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(engine.tokenizer, name, None)
        if token is not None:
            return [token]
    return [0]


def _encode(engine: LaneEngine, texts: list[str]) -> list[list[int]]:
    """Token ids. A model without a tokenizer (random weights) gets the text's bytes: as good as any for its latency."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        vocabulary = engine.vocabulary
        return [[byte % vocabulary for byte in text.encode()] for text in texts]
    if not texts:
        return []
    begin: str | None = getattr(tokenizer, "bos_token", None)
    begun = [bool(begin and text.startswith(begin)) for text in texts]
    plain = iter(_ids(tokenizer, [text for text, has in zip(texts, begun, strict=True) if not has], special=True))
    whole = iter(_ids(tokenizer, [text for text, has in zip(texts, begun, strict=True) if has], special=False))
    return [next(whole) if has else next(plain) for has in begun]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=special).input_ids if texts else []


def _text_of_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """lm-eval ends a response at the text of EOS, too, however it is spelt."""
    eos = getattr(tokenizer, "eos_token", None)
    return (eos,) if isinstance(eos, str) and eos else ()
