"""What a plan says of a checkpoint beside its size: whether prompts and responses fit its context, how it wants to be
asked, and how it is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lynx_exp.run.cost_estimate import BYTES
from lynx_exp.run.declared_checkpoint import QUANTIZATIONS
from lynx_exp.run.storage import BYTES_PER_WEIGHT, kept_storage

if TYPE_CHECKING:
    from lynx_exp.run.planned_cell import Cell
    from lynx_exp.tasks import TaskRequest

_TOKEN_BYTES = 4
"""Bytes of text that a token of a prompt is taken for where there is no tokenizer."""
_COUNTED = 16
"""Longest prompts of a task that a tokenizer counts the tokens of."""


def checkpoint_lines(cells: Sequence[Cell]) -> Iterator[str]:
    """Of the cells of one model."""
    yield from _too_long(cells)
    yield from _turns(cells)
    yield from _storage(cells[-1])


def _too_long(cells: Sequence[Cell]) -> Iterator[str]:
    """Tasks of which a prompt and its response exceed the context."""
    model, declared = cells[0].model, cells[0].config.model.checkpoint
    made_for = model.context if declared.context is None else declared.context
    limit = made_for if model.context is None else min(made_for or model.context, model.context)
    if limit is None:
        return
    doubt = declared.doubt("context") if limit == declared.context and model.declared else ""
    for cell in {(cell.config.task.name, cell.config.truncate): cell for cell in cells}.values():
        for task in cell.tasks:
            generating = [request for request in task.requests if request.continuation is None]
            longest = sorted(generating, key=_bytes, reverse=True)[:_COUNTED]
            found = max(((_length(cell, one), one) for one in longest), key=lambda pair: pair[0], default=None)
            if found is None or found[0] + found[1].max_new_tokens <= limit:
                continue
            tokens, new = found[0], found[1].max_new_tokens
            about = "about " if model.declared or cell.config.model.kind == "random" else ""
            says = f"a prompt of {about}{tokens} tokens and {new} new ones exceed the {limit} of {model.name}{doubt}"
            if cell.config.truncate == "left" and new < limit:
                yield f"context: {task.name}: {says}: truncate=left cuts its beginning"
            else:
                yield (
                    f"DOES NOT FIT the context: {task.name}: {says}; task.generation.max_gen_toks="
                    f"{max(1, limit - tokens)} would do{'' if tokens < limit else ' with truncate=left'}"
                )


def _bytes(request: TaskRequest) -> int:
    return len(request.prompt.encode())


def _length(cell: Cell, request: TaskRequest) -> int:
    """Tokens of its prompt: by the model's tokenizer, or where that is not here by its bytes."""
    from lynx_exp.run.load_tasks import tokenizer_of

    if cell.model.declared or cell.config.model.kind == "random":
        return -(-_bytes(request) // _TOKEN_BYTES)
    return len(tokenizer_of(cell.config.model)(request.prompt).input_ids)


def _turns(cells: Sequence[Cell]) -> Iterator[str]:
    """Where a model that was tuned to its chat template is asked without."""
    declared, name = cells[0].config.model.checkpoint, cells[0].model.name
    plain = dict.fromkeys(cell.config.task.name for cell in cells if not cell.config.task.apply_chat_template)
    if declared.template == "required" and plain:
        yield (
            f"{name} was tuned to its chat template{declared.doubt('template')}; asked without it: "
            f"{', '.join(plain)}; task.apply_chat_template=true applies it"
        )


def _storage(cell: Cell) -> Iterator[str]:
    hardware, storage = cell.config.hardware, cell.model.storage
    if storage is None or storage not in BYTES_PER_WEIGHT:
        return
    device = hardware.device if hardware.is_named else cell.device
    called = {own: method for method, own in QUANTIZATIONS.items()}[storage].upper()
    if kept_storage(cell, device) is None:
        yield (
            f"stored as {called}: transformers makes {cell.dtype} of it on a {device.upper()} as it loads, which counts"
        )
        return
    keeper = "vLLM" if cell.config.backend == "vllm" else "transformers, where the card has kernels for it,"
    size = BYTES_PER_WEIGHT[storage]
    yield (
        f"stored as {called}, {size:.3g} bytes a weight of an expert, as {keeper} keeps it (not tried here); "
        f"made {cell.dtype if cell.dtype in ('bfloat16', 'float16') else 'bfloat16'}, they take "
        f"{BYTES['bfloat16'] / size:.3g} times as much"
    )
