"""Which way of computing experts makes vanilla's decode step fastest: measured, on the lane at hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.graph import CannotRecord, Capture, Graphs
from lynx_exp.engine.decoding.loaded import LoadedModel
from lynx_exp.engine.decoding.slot_batch import SlotBatch
from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.engine.timing.measure import MakeBatch
from lynx_exp.models import from_first
from lynx_exp.models.expert_kernels import FEW_ROWS, refusal
from lynx_exp.models.experts import PER_EXPERT, using_experts

CANDIDATES = {"cpu": (PER_EXPERT, "grouped_mm"), "cuda": (FEW_ROWS, "grouped_mm", "batched_mm")}
"""A device's ways that can be fastest. transformers' eager loop never is; batched_mm copies the weights of each
token's experts."""
_BATCHED_ROWS = 8
"""More rows than this copy too many weights."""
_ROUNDS = 4
_STEPS = 6


def choose_experts(self: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[str | None, Mapping[str, float]]:
    """(how experts are computed fastest in a vanilla step of so many rows, milliseconds of each way); tried once for
    each number of rows, unless the way was given at load."""
    if not self.auto_experts:
        return self.experts_implementation, {}
    rows = len(prompts)
    if rows not in self._fastest:
        why = why_no_few_rows(self, rows)
        refused = () if why is None else (FEW_ROWS,)
        capture = self.steps.capture if self.has_slots else None
        times = fastest_experts(self.model, self._lane_alone, prompts, without=refused, capture=capture)
        self._fastest[rows] = why, from_first(times, self.routers)
    why, times = self._fastest[rows]
    self.experts_note = why and f"experts are not computed as {FEW_ROWS}: {why}"
    return min(times, key=times.__getitem__), times


def why_no_few_rows(self: LoadedModel, rows: int) -> str | None:
    """What speaks against the kernels of `few_rows` at so many rows; None: nothing, or no candidate here."""
    if FEW_ROWS not in CANDIDATES.get(self.device.type, ()):
        return None
    return from_first(refusal(self.model, rows, self.top_k), self.routers)


def stream_experts(self: LoadedModel, rows: int) -> str | None:
    """How a stream of recorded steps of so many rows computes experts: in the way in which no row depends on another,
    unless one was given at load, or that one does not run here. None: as the model does."""
    if not self.auto_experts or FEW_ROWS not in CANDIDATES.get(self.device.type, ()):
        return None
    return FEW_ROWS if why_no_few_rows(self, rows) is None else None


@torch.inference_mode()
def fastest_experts(
    model: PreTrainedModel,
    make_batch: MakeBatch,
    prompts: Sequence[Sequence[int]],
    without: Collection[str] = (),
    capture: Capture | None = None,
) -> Mapping[str, float]:
    """Name -> median milliseconds of a vanilla step, in interleaved rounds of which the first does not count.
    `without`: ways that are not tried; `capture`: records the steps, as they will run, in the first round; None, or
    where one of them cannot be recorded: all are launched from Python."""
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
    for way in (None,) if capture is None else (capture, None):
        try:
            return _timed(model, batch, names, token_R, way)
        except CannotRecord:
            continue
    raise AssertionError("unreachable")


def _timed(
    model: PreTrainedModel, batch: Batch | SlotBatch, names: Sequence[str], token_R: Tensor, capture: Capture | None
) -> Mapping[str, float]:
    graphs = {name: Graphs(capture, batch.num_rows, token_R.device) for name in names} if capture is not None else {}

    def step(name: str) -> None:
        if name not in graphs:
            batch.step(token_R)
            return
        assert isinstance(batch, SlotBatch)
        batch.graphed_step(token_R, graphs[name], lambda: None)

    times: dict[str, list[float]] = {name: [] for name in names}
    for trial in range(_ROUNDS):
        for name in names:
            with using_experts(model, name):
                batch.rewind()
                for _ in range(_STEPS):
                    start = _now(token_R)
                    step(name)
                    # the first round compiles, tunes or captures
                    if trial:
                        times[name].append((_now(token_R) - start) * 1e3)
    return {name: median(steps) for name, steps in times.items()}


def _now(tensor: torch.Tensor) -> float:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
    return perf_counter()
