"""Columns of the frames that are made from a cell's JSON files: unit, meaning, and the file that each is in."""

from __future__ import annotations

from lynx_exp.store.table_columns import TABLE_COLUMNS, Column


def _columns(file: str, *rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(name=name, unit=unit, meaning=meaning, file=file) for name, unit, meaning in rows)


CELL_COLUMNS = (
    *_columns(
        "cell.json",
        ("cell_id", "-", "hash of everything that can change the cell's science"),
        ("pair_id", "-", "equal for cells that differ only in policy, parameters and phases"),
        ("study", "-", "folder below the results root"),
        ("model", "-", "preset name, path or hub id"),
        ("task", "-", "name of the evaluation task"),
        ("mixing", "-", "of several tasks in one stream of requests: shuffled or separate lanes; missing = no mix"),
        ("batch_size", "rows", "rows of one lane in decode"),
        ("batching", "-", "continuous (slots refilled from a queue) or static (a batch that drains)"),
        ("tail", "-", "continuous: filler (slots stay full until the lane's last scored request ends) or drain"),
        ("waves", "-", "continuous: requests of a lane's queue, in batch sizes, at most"),
        ("choices", "-", "whether the choices of one document are spread over lanes, or together in one"),
        ("plan_seed", "-", "seed of the order in which requests enter lanes; tables pool cells that differ only in it"),
        ("scoring", "-", "how choices are scored: decode or prefill"),
        ("policy", "-", "name of the selection policy"),
        ("policy_label", "-", "policy and parameters as people read them"),
        ("phases", "-", "where the policy acts: decode, prefill, both or none"),
        ("layers", "-", "in which layers the policy acts; missing = all"),
        (
            "match_active",
            "experts, or share",
            "what the policy's knob was set for; missing = its parameters are as given",
        ),
        ("limit", "documents", "documents per subtask; missing = all"),
        ("seed", "-", "seed of sampling"),
        ("backend", "-", "what ran the model"),
        ("dtype", "-", "number format of the weights"),
        ("device", "-", "kind of device"),
        ("num_experts", "experts", "experts per MoE layer (E); missing if not recorded"),
        ("top_k", "experts", "experts per token (K); missing if not recorded"),
        ("num_layers", "layers", "MoE layers; missing if not recorded"),
    ),
    *_columns(
        "metrics.json",
        (
            "selection_us",
            "µs per layer",
            "what the policy's selection alone takes in a decode step; missing = not timed",
        ),
        ("active_experts", "experts per layer and step", "mean over scored tokens, of the token's step"),
        ("active_experts_full", "experts per layer and step", "mean over the decode steps that ran a full batch"),
        ("live_rows", "rows", "mean over scored tokens of the rows that the token's step decoded, fillers included"),
        ("full_steps", "share 0..1", "decode steps that ran a full batch"),
        ("scored_share", "share 0..1", "decoded tokens that are no filler's"),
        ("new_tokens_mean", "tokens", "mean length of a generated response, over the cell"),
        ("length_stop_share", "share 0..1", "generated responses that the length limit cut off, over the cell"),
    ),
    *_columns(
        "timing.json",
        ("prefill_tokens", "tokens", "of the timed prefill, over its lane"),
        ("copy_gb_s", "GB/s", "that a plain copy on the device reached, read and written"),
        ("vanilla_j_per_token", "J", "vanilla's on the same steps"),
        ("precision", "share", "half width of the speed-up's interval that was asked for; missing = not timed"),
        ("precision_reached", "-", "whether the timing came as near as was asked for; missing = not timed"),
    ),
    *_columns(
        "status.json",
        ("seconds", "s", "wall time of the cell"),
    ),
    *_columns(
        "",  # made of several fields, or of several files
        ("policy_params", "-", "its parameters, as JSON with sorted keys"),
        (
            "matched",
            "-",
            "as JSON: the parameter set for match_active, its value, and the active experts on calibration",
        ),
        ("timed_active_experts", "experts per layer and step", "mean over the timed decode steps of the policy"),
        ("timed_context", "tokens", "length of the prompts that were timed; missing = the task's own"),
        (
            "prefill_active_experts",
            "experts per layer",
            "that the timed prefill ran, for the policy; missing = not timed",
        ),
        ("step_gb", "GB (1e9 bytes)", "that a timed step has to read, by the bytes model; missing = not known"),
        ("gb_s", "GB/s", "these over the step's time, mean over timed steps"),
        (
            "s_mbu",
            "share",
            "gb_s over copy_gb_s of all devices at work: MoE-CAP's S-MBU against a measured rate; above 1 where caches "
            "serve",
        ),
        ("j_per_token", "J", "energy of the GPU's board for a decoded token; missing = no counter"),
        (
            "busy",
            "-",
            "whether other threads and the model's wanted more than all CPUs when it was timed; missing = not known",
        ),
        ("environment", "-", "what can change last bits and times: versions, hardware, threads, as JSON"),
        (
            "invalid",
            "-",
            "why nobody should trust what the cell gives, reasons joined by semicolons; empty: none known",
        ),
        ("path", "-", "folder of the cell"),
    ),
)
"""Of a finished cell."""

METRIC_COLUMNS = _columns(
    "metrics.json",
    ("cell_id", "-", "the cell that the row belongs to"),
    ("subtask", "-", "one lm-eval task of the cell's task"),
    ("metric", "-", "name of the metric, as lm-eval calls it"),
    ("filter", "-", "answer filter that the metric was computed behind"),
    ("value", "metric's own", "the metric over all samples: 0..1 for accuracies, 0..100 for BLEU"),
    ("higher_is_better", "-", "direction of the metric"),
    ("headline", "-", "the one metric that stands for the subtask"),
    ("corpus", "-", "computed over the whole corpus, not a mean over samples"),
    ("samples", "documents", "documents behind the value"),
)
"""Of a cell, subtask, metric and filter."""

_CELL_ID = METRIC_COLUMNS[0]

FRAMES: dict[str, tuple[Column, ...]] = {
    "cells": CELL_COLUMNS,
    "metrics": METRIC_COLUMNS,
    **{
        name: (_CELL_ID, *(column for column in TABLE_COLUMNS[name] if column.loaded))
        for name in ("samples", "responses", "steps", "prefill", "timing", "breakdown", "fidelity")
    },
}
"""The frames of `analysis.load`, by name."""

FRAME_ROWS = {
    "cells": "a finished cell",
    "metrics": "a cell, subtask, metric and filter",
    "samples": "a cell, subtask and document",
    "responses": "a cell, subtask and request, without its text",
    "steps": "a cell, subtask, lane, decode step and layer",
    "prefill": "a cell, subtask, lane and layer; empty where no cell's policy acts on prompts",
    "timing": "a timed decode step; empty where no cell measured latency",
    "breakdown": "a cell, name, repeat and section; empty where no cell timed sections",
    "fidelity": "a cell, subtask and request; empty where no cell compared distributions with vanilla's",
}
"""What one row of each frame is."""


def frame_columns(frame: str) -> list[str]:
    """Column names of a frame, in order."""
    return [column.name for column in FRAMES[frame]]


def columns_in(file: str) -> list[str]:
    """Names of the cells' columns that this JSON file has under the same name."""
    return [column.name for column in CELL_COLUMNS if column.file == file]
