"""Columns of the frames that `analysis.load` returns: name, unit and meaning; docs/records.md is made from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Column:
    name: str
    unit: str
    """Unit of the values; "-" for names and flags."""
    meaning: str


def _columns(*rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(name=name, unit=unit, meaning=meaning) for name, unit, meaning in rows)


_CELL_ID = ("cell_id", "-", "the cell that the row belongs to")
_SUBTASK = ("subtask", "-", "one lm-eval task of the cell's task")
_LANE = ("lane", "-", "virtual decode batch; the cluster of every interval")

ROWS = {
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

TABLES: dict[str, tuple[Column, ...]] = {
    "cells": _columns(
        ("cell_id", "-", "hash of everything that can change the cell's science"),
        ("pair_id", "-", "equal for cells that differ only in policy, parameters and phases"),
        ("study", "-", "folder below the results root"),
        ("model", "-", "preset name, path or hub id"),
        ("task", "-", "name of the evaluation task"),
        ("mixing", "-", "of several tasks in one stream of requests: shuffled or separate lanes; missing = no mix"),
        ("batch_size", "rows", "rows of one lane in decode"),
        ("batching", "-", "continuous (slots refilled from a queue) or static (a batch that drains)"),
        ("tail", "-", "continuous: filler (slots stay full until the lane's last scored request ends) or drain"),
        (
            "plan_seed",
            "-",
            "seed of the order in which requests enter lanes; tables pool cells that differ only in it",
        ),
        ("scoring", "-", "how choices are scored: decode or prefill"),
        ("policy", "-", "name of the selection policy"),
        ("policy_params", "-", "its parameters, as JSON with sorted keys"),
        ("policy_label", "-", "policy and parameters as people read them"),
        ("phases", "-", "where the policy acts: decode, prefill, both or none"),
        ("layers", "-", "in which layers the policy acts; missing = all"),
        (
            "match_active",
            "experts, or share",
            "what the policy's knob was set for; missing = its parameters are as given",
        ),
        (
            "matched",
            "-",
            "as JSON: the parameter set for match_active, its value, and the active experts on calibration",
        ),
        (
            "selection_us",
            "µs per layer",
            "what the policy's selection alone takes in a decode step; missing = not timed",
        ),
        ("limit", "documents", "documents per subtask; missing = all"),
        ("seed", "-", "seed of sampling"),
        ("backend", "-", "what ran the model"),
        ("dtype", "-", "number format of the weights"),
        ("device", "-", "kind of device"),
        ("num_experts", "experts", "experts per MoE layer (E); missing if not recorded"),
        ("top_k", "experts", "experts per token (K); missing if not recorded"),
        ("num_layers", "layers", "MoE layers; missing if not recorded"),
        (
            "active_experts",
            "experts per layer and step",
            "mean over scored tokens, of the token's step",
        ),
        ("active_experts_full", "experts per layer and step", "mean over the decode steps that ran a full batch"),
        ("live_rows", "rows", "mean over scored tokens of the rows that the token's step decoded, fillers included"),
        ("full_steps", "share 0..1", "decode steps that ran a full batch"),
        ("scored_share", "share 0..1", "decoded tokens that are no filler's"),
        ("new_tokens_mean", "tokens", "mean length of a generated response, over the cell"),
        ("length_stop_share", "share 0..1", "generated responses that the length limit cut off, over the cell"),
        ("timed_active_experts", "experts per layer and step", "mean over the timed decode steps of the policy"),
        ("timed_context", "tokens", "length of the prompts that were timed; missing = the task's own"),
        (
            "prefill_active_experts",
            "experts per layer",
            "that the timed prefill ran, for the policy; missing = not timed",
        ),
        ("prefill_tokens", "tokens", "of the timed prefill, over its lane"),
        ("step_gb", "GB (1e9 bytes)", "that a timed step has to read, by the bytes model; missing = not known"),
        ("gb_s", "GB/s", "these over the step's time, mean over timed steps"),
        ("copy_gb_s", "GB/s", "that a plain copy on the device reached, read and written"),
        (
            "s_mbu",
            "share",
            "gb_s over copy_gb_s of all devices at work: MoE-CAP's S-MBU against a measured rate; above 1 where caches "
            "serve",
        ),
        ("j_per_token", "J", "energy of the GPU's board for a decoded token; missing = no counter"),
        ("vanilla_j_per_token", "J", "vanilla's on the same steps"),
        ("precision_reached", "-", "whether the timing came as near as was asked for; missing = not timed"),
        (
            "busy",
            "-",
            "whether other threads and the model's wanted more than all CPUs when it was timed; missing = not known",
        ),
        ("seconds", "s", "wall time of the cell"),
        ("environment", "-", "what can change last bits and times: versions, hardware, threads, as JSON"),
        (
            "invalid",
            "-",
            "why nobody should trust what the cell gives, reasons joined by semicolons; empty: none known",
        ),
        ("path", "-", "folder of the cell"),
    ),
    "metrics": _columns(
        _CELL_ID,
        _SUBTASK,
        ("metric", "-", "name of the metric, as lm-eval calls it"),
        ("filter", "-", "answer filter that the metric was computed behind"),
        ("value", "metric's own", "the metric over all samples: 0..1 for accuracies, 0..100 for BLEU"),
        ("higher_is_better", "-", "direction of the metric"),
        ("headline", "-", "the one metric that stands for the subtask"),
        ("corpus", "-", "computed over the whole corpus, not a mean over samples"),
        ("samples", "documents", "documents behind the value"),
    ),
    "samples": _columns(
        _CELL_ID,
        _SUBTASK,
        ("doc_id", "-", "document of the subtask"),
        _LANE,
        ("score", "metric's own", "headline score of the document; missing for a corpus metric"),
        ("scores", "-", "all scores of the document, as JSON"),
        ("target", "-", "reference text"),
        ("filtered", "-", "answer behind the filter"),
        ("request", "-", "number in the plan of the request that was scored; of repeats the first"),
        ("new_tokens", "tokens", "length of its response"),
        ("finish_reason", "-", "why its response ended, as in responses"),
        (
            "verdict",
            "-",
            "what became of generated code: `passed`, `timeout`, `raised CLASS` ...; `transport: WHY` and "
            "`not started: WHY` are no verdicts, though they score 0; missing for other tasks",
        ),
    ),
    "responses": _columns(
        _CELL_ID,
        _SUBTASK,
        ("request", "-", "number of the request in the plan; every repeat is a request of its own"),
        ("doc_id", "-", "document of the subtask"),
        _LANE,
        ("prompt_tokens", "tokens", "length of the prompt"),
        ("new_tokens", "tokens", "length of the response"),
        ("entered_step", "-", "decode step of the lane that is the first to feed one of its tokens"),
        ("finish_reason", "-", "eos, stop (a stop string), length (cut off); scored: a choice, nothing generated"),
    ),
    "steps": _columns(
        _CELL_ID,
        ("subtask", "-", "one lm-eval task of the cell's task; of a mix the stream, under the task's name"),
        _LANE,
        ("step", "-", "decode step of the lane, from 0"),
        ("layer", "-", "MoE layer, from 0"),
        ("live_rows", "rows", "unfinished rows of the lane in the step, fillers included"),
        ("scored_rows", "rows", "of these, those whose responses are scored"),
        ("active_experts", "experts", "distinct experts that the layer ran for the lane in the step"),
        ("changed", "assignments", "of top_k per live row: experts that the router chose and that did not run"),
    ),
    "prefill": _columns(
        _CELL_ID,
        ("subtask", "-", "as in steps; only of cells whose policy acts on prompts"),
        _LANE,
        ("layer", "-", "MoE layer, from 0"),
        ("tokens", "tokens", "of the lane's prompts"),
        ("changed", "assignments", "of top_k per token, as in steps"),
    ),
    "timing": _columns(
        _CELL_ID,
        (
            "name",
            "-",
            "vanilla or policy, timed in turns, step by step; vanilla prefill or policy prefill: a whole lane's",
        ),
        ("window", "-", "place of the run, in the order of timing; the cluster of intervals of times"),
        ("subtask", "-", "as in steps"),
        ("lane", "-", "of the run, from which the window was drawn"),
        ("start_step", "-", "decode step of that lane that is the window's first"),
        ("repeat", "-", "repeat of the window, from 0"),
        ("step", "-", "decode step of the window, from 0"),
        ("live_rows", "rows", "live in the step"),
        ("active_experts", "experts", "distinct experts that ran, mean over layers"),
        ("context", "tokens", "positions that a row attends to, mean over rows"),
        ("ms", "ms", "duration of the step for the whole batch"),
    ),
    "breakdown": _columns(
        _CELL_ID,
        ("name", "-", "vanilla or policy"),
        ("repeat", "-", "repeat of the measurement, from 0"),
        ("section", "-", "attention, router, policy, experts or rest; they add up to the step"),
        ("ms", "ms", "time of the section in a decode step, mean over its steps"),
    ),
    "fidelity": _columns(
        _CELL_ID,
        _SUBTASK,
        ("request", "-", "number of the request in the plan"),
        ("doc_id", "-", "document of the subtask"),
        _LANE,
        ("tokens", "tokens", "length of vanilla's response (or of the choice)"),
        ("kl", "nats", "KL(vanilla || policy) of the next-token distributions, summed over the tokens"),
        ("agreeing", "tokens", "tokens where the most likely one is the same"),
    ),
}
"""Only these columns are read. The cells' files hold more: texts of responses, prompts' hashes, slots, sandboxes, which
no number here needs and which would fill the memory (`lynx_exp.store.read` reads them, a cell at a time)."""


def names(table: str) -> list[str]:
    """Column names of a frame, in order."""
    return [column.name for column in TABLES[table]]
