"""What a cell asks of the engine: token ids of its tasks' requests, and who shares a lane with whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lynx_exp.launch.cell import Cell

if TYPE_CHECKING:
    from lynx_exp.engine import BatchPlan, Engine, Request
    from lynx_exp.tasks import EvalTask


def encode_requests(task: EvalTask, engine: Engine, truncate: str = "error") -> list[Request]:
    """Token ids of the task's requests: prompts with their special tokens, continuations without.

    A request that does not fit the model's context loses the beginning of its prompt with `truncate="left"`;
    otherwise ValueError names it.
    """
    from lynx_exp.engine import Request

    prompts = _encode(engine, [request.prompt for request in task.requests], special=True)
    generates = task.kind == "generate"
    continuations = (
        [[]] * len(prompts)
        if generates
        else _encode(engine, [request.continuation or "" for request in task.requests], special=False)
    )
    readable = engine.tokenizer is not None  # else no stop string can be found
    made = []
    for number, (asked, ids, more) in enumerate(zip(task.requests, prompts, continuations, strict=True)):
        room = asked.max_new_tokens if generates else len(more)
        ids = _fit(ids, room, engine.context_length, truncate, f"{task.name}: request {number}")
        if generates:
            stop = tuple(asked.until) if readable else ()
            made.append(Request(prompt_ids=tuple(ids), max_new_tokens=room, stop=stop))
        else:
            made.append(Request(prompt_ids=tuple(ids), continuation_ids=tuple(more)))
    return made


def plan_of(cell: Cell, task: EvalTask) -> BatchPlan:
    """The cell's lanes. Choices of one document stay together."""
    from lynx_exp.engine import BatchPlan

    config = cell.config
    groups = [request.doc_id for request in task.requests] if task.kind == "choice" else None
    if config.batching == "continuous":
        return BatchPlan.continuous(len(task.requests), config.batch_size, config.seed, groups, config.waves)
    return BatchPlan.static(len(task.requests), config.batch_size, config.seed, groups)


def plan_json(cell: Cell, plan: BatchPlan) -> dict[str, Any]:
    """plan.json's entry of one subtask."""
    config = cell.config
    lanes = [list(lane) for lane in plan.lanes]
    return {
        "batch_size": config.batch_size,
        "batching": config.batching,
        "seed": config.seed,
        "digest": plan.digest(),
        "lanes": lanes,
    }


def _fit(ids: list[int], room: int, context: int | None, truncate: str, what: str) -> list[int]:
    if context is None or len(ids) + room <= context:
        return ids
    if truncate == "left" and room < context:
        return ids[len(ids) + room - context :]
    hint = "" if truncate == "left" else "; truncate=left cuts such prompts at their beginning"
    raise ValueError(
        f"{what}: a prompt of {len(ids)} tokens and {room} more do not fit the model's {context} positions{hint}"
    )


def _encode(engine: Engine, texts: list[str], *, special: bool) -> list[list[int]]:
    """Token ids. A model without a tokenizer (random weights) gets the text's bytes: as good as any for its latency."""
    if engine.tokenizer is not None:
        return engine.tokenizer(texts, add_special_tokens=special).input_ids
    vocabulary = engine.model.get_input_embeddings().num_embeddings
    return [[byte % vocabulary for byte in text.encode()] for text in texts]
