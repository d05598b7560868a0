"""Which way of computing experts makes vanilla's decode step fastest: measured, on the lane at hand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import torch
from transformers import PreTrainedModel

from lynx_exp.engine.measure import MakeBatch
from lynx_exp.models.expert_kernels import FEW_ROWS
from lynx_exp.models.experts import PER_EXPERT

CANDIDATES = {"cpu": (PER_EXPERT, "grouped_mm"), "cuda": (FEW_ROWS, "grouped_mm", "batched_mm")}
"""A device's ways that can be fastest. transformers' eager loop never is; batched_mm copies the weights of each
token's experts."""
_BATCHED_ROWS = 8
"""More rows than this copy too many weights."""
_ROUNDS = 4
_STEPS = 6


@torch.inference_mode()
def fastest_experts(
    model: PreTrainedModel, make_batch: MakeBatch, prompts: Sequence[Sequence[int]], without: Collection[str] = ()
) -> Mapping[str, float]:
    """Name -> median milliseconds of a vanilla step, in interleaved rounds of which the first does not count.
    `without`: ways that are not tried."""
    device = model.get_input_embeddings().weight.device.type
    names = [n for n in CANDIDATES.get(device, ()) if n != "batched_mm" or len(prompts) <= _BATCHED_ROWS]
    names = [n for n in names if n not in without]
    current = model.config.get_text_config()._experts_implementation
    if not names or current is None:
        return {current: 0.0}
    batch = make_batch(prompts, _STEPS)
    if not batch.slots:  # it cannot be rewound, and is refused by whoever measures
        return {current: 0.0}
    token_R = batch.prefill().argmax(-1)
    times: dict[str, list[float]] = {name: [] for name in names}
    for trial in range(_ROUNDS):
        for name in names:
            with using_experts(model, name):
                batch.rewind()
                for _ in range(_STEPS):
                    start = _now(token_R)
                    batch.step(token_R)
                    if trial:
                        times[name].append((_now(token_R) - start) * 1e3)
    return {name: median(steps) for name, steps in times.items()}


@contextmanager
def using_experts(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """The model with its experts computed in this way."""
    before = model.config.get_text_config()._experts_implementation
    if name is None or name == before:
        yield
        return
    model.set_experts_implementation(name)
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _now(tensor: torch.Tensor) -> float:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return perf_counter()
