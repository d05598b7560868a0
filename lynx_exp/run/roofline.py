"""What cells would take on hardware that is not here: memory, and the least time, by shapes and data sheets.

A decode step takes as long as its bytes (`StepBytes`: MoE-CAP's and vLLM's count) take from memory, or its operations,
whichever is longer; a prefill likewise. Experts are those of vanilla under uniform routing, E (1 - (1 - K/E)^R) of R
rows. Every response is as long as it may be. Overhead, communication, fillers and loading are left out: a bound
from below but for the lengths, and no measurement. Timed windows count as the fewest that are timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from lynx_exp.config import HardwareConfig
from lynx_exp.run.cost_estimate import BYTES, GIB, Shape, architecture, shape_of, weightless
from lynx_exp.run.memory_by_device import SHARE, Part, Spread, parts, rows_that_fit, spread_of
from lynx_exp.run.packs import pack_groups
from lynx_exp.run.run_progress import clock
from lynx_exp.run.storage import Share, kept_storage, shares

if TYPE_CHECKING:
    from lynx_exp.engine.timing.step_bytes import StepBytes
    from lynx_exp.run.planned_cell import Cell

_TOKEN_BYTES = 4
"""Bytes of text that a token of a prompt is taken for."""
_PREFILL_TOKENS = 8192
"""That go through the model at a time, for which its weights are read once."""
_NODE = 8
"""Devices of one machine."""
_MOST_DEVICES = 64
_SHORT = 600.0
"""Seconds below which what a run begins with is most of it."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one pack computes."""

    prefill: float
    """Tokens of prompts, and of choices to score."""
    decode: float
    """Tokens to generate, at most."""
    rows: int
    """That could decode side by side."""
    context: float
    """Mean positions before a decoded token."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices that hold one model."""

    one: HardwareConfig
    devices: int
    together: bool
    """Whether all of them work at the same time (slices), or one after another (layers)."""
    width: int = 2
    """Bytes of a weight in the dtype that is computed with."""
    share: Share = Share()
    """Of these that are stored, and read."""

    def stored(self, read: StepBytes) -> StepBytes:
        return replace(read, once=round(read.once * self.share.other), expert=read.expert * self.share.expert)

    def seconds(self, *, read: float, operations: float) -> float:
        """At least."""
        assert self.one.bandwidth_gb_s is not None and self.one.tflops is not None, "named"
        at_once = self.devices if self.together else 1
        return max(read / (self.one.bandwidth_gb_s * 1e9), operations / (self.one.tflops * 1e12)) / at_once


def hardware_lines(cells: Sequence[Cell], positions: int) -> Iterator[str]:
    """For the cells of one model: whether it fits on the hardware they name, and what they take; else what would do.
    `positions`: of the longest row."""
    cell, widest = cells[-1], max(cell.config.batch_size for cell in cells)
    hardware = cell.config.hardware
    automatic = "float32" if hardware.device == "cpu" else "bfloat16"
    dtype = automatic if cell.config.dtype == "auto" else cell.config.dtype
    shape, read = shape_of(cell), bytes_of_step(cell, dtype)
    if shape is None or read is None:
        yield f"roofline: {cell.model.name}: its size cannot be told from its configuration"
        return
    spread, memory = spread_of(cell), hardware.memory_gib
    assert memory is not None, "named"
    machine = Machine(one=hardware, devices=spread.devices, together=spread.together, width=BYTES[dtype])
    storage = kept_storage(cell, hardware.device)
    if storage is not None:
        machine = replace(machine, share=_shares(*architecture(cell), BYTES[dtype], storage))
    row = _row_gib(shape, dtype, positions)
    place = f"{machine.devices} x {hardware.label or hardware.name}"
    if hardware.devices > 1 and spread.how == "none":
        yield f"hardware.devices={hardware.devices}: {cell.model.name} is on one without model.parallel or device_map"
    found: Sequence[Part] = ()
    try:
        found = parts(cell, dtype, spread, memory) or ()
        fit, why = rows_that_fit(found, memory, row), ""
        fullest = max(found, key=lambda part: part.weights + widest * row * part.kept)
        if fit < widest:
            kept = widest * row * fullest.kept
            why = (
                f"DOES NOT FIT on {place}: weights {fullest.weights:.1f} GiB and batch_size={widest} rows of up to "
                f"{positions} positions {kept:.1f} GiB, of {memory:.1f} GiB{'' if len(found) == 1 else ' each'}"
            )
    except ValueError as error:
        fit, why = 0, f"CANNOT BE SPREAD over {place} by {spread.how}: {error}"
    if why:
        yield f"{cell.model.name} in {dtype} {why}; {_would_do(cell, hardware, dtype, row, widest)}"
        return
    seconds, rows, step = _seconds(cells, machine, read, fit)
    kind = "CPU" if hardware.device == "cpu" else "GPU"
    hours = f"{seconds * machine.devices / 3600:.3g} {kind} hours"
    yield (
        f"roofline, not measured: {cell.model.name} in {dtype} on {place}: at least {hours}, {clock(seconds)} on the "
        "clock, if every response is as long as it may be"
    )
    yield (
        f"  weights {_by_device(found)} of {memory:.1f} GiB{'' if len(found) == 1 else ' each'}; {rows} rows of up to "
        f"{positions} positions at once, {fit} would fit; a step of them {1000 * step:.2f} ms; vanilla's experts by "
        "uniform routing, no overhead, no communication"
    )
    if seconds < _SHORT:
        yield f"  loose for so little: loading {_weights(found):.0f} GiB and starting, not counted, are most of it"


def _weights(found: Sequence[Part]) -> float:
    return sum(part.weights for part in found)


def _by_device(found: Sequence[Part]) -> str:
    """`43.6 GiB`, or of several devices that hold unequal parts each."""
    each = [f"{part.weights:.1f}" for part in found]
    return each[0] if len(set(each)) == 1 else " + ".join(each)


def _row_gib(shape: Shape, dtype: str, positions: int) -> float:
    return (shape.position * BYTES[dtype] * positions + shape.row) / GIB


def _would_do(cell: Cell, hardware: HardwareConfig, dtype: str, row: float, widest: int) -> str:
    """What would hold the model and the rows: the fewest devices."""
    memory = hardware.memory_gib
    assert memory is not None, "named"
    if hardware.device == "cpu":
        (whole,) = parts(cell, dtype, Spread(how="none", devices=1), memory) or ()
        return f"{whole.weights + widest * row / SHARE:.0f} GiB would do, or a smaller model"
    devices, reasons = 1, {}
    while devices <= _MOST_DEVICES:
        for how in ("none",) if devices == 1 else ("tp", "ep", "device_map"):
            spread = Spread(how=how, devices=devices)
            try:
                found = None if how == "device_map" and devices > _NODE else parts(cell, dtype, spread, memory)
            except ValueError as error:
                reasons[how] = str(error)
                continue
            if found is not None and rows_that_fit(found, memory, row) >= widest:
                nodes = f", that is {devices // _NODE} machines of {_NODE}" if devices > _NODE else ""
                return f"{devices} would do{nodes}: {spread.words}" if devices > 1 else "one would do"
        devices *= 2
    said = "; ".join(f"{how}: {reason}" for how, reason in reasons.items() if how in ("tp", "ep"))
    return f"up to {_MOST_DEVICES} do not hold it, nor one machine of {_NODE} by layers{f' ({said})' if said else ''}"


def bytes_of_step(cell: Cell, dtype: str) -> StepBytes | None:
    """Of the cell's model in `dtype`; None where they cannot be told."""
    return _step_of(*architecture(cell), cell.model.num_experts, dtype)


@cache
def _step_of(
    kind: str, name: str, revision: str | None, trust: bool, fields: str, experts: int, dtype: str
) -> StepBytes | None:
    from lynx_exp.engine.timing.weightless_bytes import weightless_bytes
    from lynx_exp.models import resolve_dtype

    model = weightless(kind, name, revision, trust, fields)
    return None if model is None else weightless_bytes(model.to(resolve_dtype(dtype, model.device)), experts)


@cache
def _shares(kind: str, name: str, revision: str | None, trust: bool, fields: str, width: int, storage: str) -> Share:
    model = weightless(kind, name, revision, trust, fields)
    return Share() if model is None else shares(dict(model.named_parameters()), width, storage)


def _seconds(cells: Sequence[Cell], machine: Machine, read: StepBytes, fit: int) -> tuple[float, int, float]:
    """(of all packs, rows of the widest pack, of its step)"""
    total, most, slowest = 0.0, 0, 0.0
    for pack in pack_groups(cells):
        demand, first = demand_of(pack), pack[0]
        rows = max(min(first.config.pack.max_rows, fit, demand.rows), *(cell.config.batch_size for cell in pack), 1)
        step = step_seconds(read, machine, first.model.num_experts, first.model.top_k, rows, demand.context)
        total += demand.decode / rows * step + _prefill_seconds(read, machine, first, demand.prefill)
        total += sum(_timed_steps(cell) * _alone(read, machine, cell, demand.context) for cell in pack)
        if rows > most:
            most, slowest = rows, step
    return total, most, slowest


def _timed_steps(cell: Cell) -> int:
    """Decode steps of its lanes alone, at least: windows of the policy and of vanilla, and a turn before each."""
    measure = cell.config.measure
    if not measure.latency:
        return 0
    turns = 1 if cell.config.is_untouched else 2
    return measure.windows * measure.new_tokens * (measure.repeats + 1) * turns


def _alone(read: StepBytes, machine: Machine, cell: Cell, context: float) -> float:
    rows, held = cell.config.batch_size, cell.config.measure.context
    at = context if held is None else float(held)
    return step_seconds(read, machine, cell.model.num_experts, cell.model.top_k, rows, at)


def step_seconds(read: StepBytes, machine: Machine, num_experts: int, top_k: int, rows: int, context: float) -> float:
    """Of one decode step of vanilla: `rows` rows, each after `context` positions."""
    active = num_experts * (1 - (1 - top_k / num_experts) ** rows)
    return machine.seconds(
        read=machine.stored(read).of(active=active, rows=rows, positions=rows * context),
        operations=rows * _operations(read, top_k, machine.width),
    )


def _operations(read: StepBytes, top_k: int, width: int) -> float:
    """For one token: a multiplication and an addition for each weight that it meets, of `width` bytes."""
    return 2 * (read.once + read.layers * top_k * read.expert) / width


def _prefill_seconds(read: StepBytes, machine: Machine, cell: Cell, tokens: float) -> float:
    whole = machine.stored(read).of(active=cell.model.num_experts, rows=0, positions=0)
    passes = math.ceil(tokens / _PREFILL_TOKENS)
    return machine.seconds(read=passes * whole, operations=tokens * _operations(read, cell.model.top_k, machine.width))


def demand_of(pack: Sequence[Cell]) -> Demand:
    """Prompts are prefilled once for all cells of a pack, as the engine does for policies that act in decode."""
    prompts = {request.prompt for task in pack[0].tasks for request in task.requests}
    prefill, decode, rows, before = sum(map(_tokens, prompts)), 0.0, 0, 0.0
    for cell in pack:
        for task in cell.tasks:
            answers = [request for request in task.requests if request.continuation is None]
            prefill += sum(_tokens(r.continuation) for r in task.requests if r.continuation is not None)
            decode += sum(request.max_new_tokens for request in answers)
            before += sum((_tokens(r.prompt) + r.max_new_tokens / 2) * r.max_new_tokens for r in answers)
            rows += _slots(cell, len(answers))
    return Demand(prefill=prefill, decode=decode, rows=rows, context=before / decode if decode else 0.0)


def _slots(cell: Cell, requests: int) -> int:
    config = cell.config
    waves = config.waves if config.batching == "continuous" and config.batch_size > 1 else 1
    return min(requests, math.ceil(requests / (config.batch_size * waves)) * config.batch_size)


def _tokens(text: str) -> float:
    return len(text.encode()) / _TOKEN_BYTES
