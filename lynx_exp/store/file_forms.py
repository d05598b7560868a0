"""The form of every JSON and YAML file of a study: what must be in it, and of what type. Fields that no reader uses are
not looked at."""

from __future__ import annotations

import re

from lynx_exp.store.cell_columns import columns_in
from lynx_exp.store.shapes import Shape, anything, count, fields, flag, integer, items, maybe, named, number, text
from lynx_exp.store.timing_info import USED

_TEXTS = ("pair_id", "sizes_id", "study", "model", "task", "batching", "scoring", "policy", "policy_label", "phases")
# By hand, and not from `Config`: this says what files on disk may hold, those of earlier versions too, and a field
# whose declaration changes must not make them unreadable.
_OF_A_CELL = dict.fromkeys((*_TEXTS, "backend", "dtype", "device"), text) | {
    "policy_params": named(anything),
    "match_active": maybe(number),
    "layers": maybe(text),
    "mixing": maybe(text),
    "batch_size": count,
    "limit": maybe(count),
    "seed": integer,
    **dict.fromkeys(("num_experts", "top_k", "num_layers"), maybe(count)),
}
CELL = fields({"schema": integer, "cell_id": text}, _OF_A_CELL)

SHOWN = ("pair_id", "study", "model", "task", "policy", "policy_params", "policy_label", "phases", "batch_size")
"""Fields of cell.json without which a finished cell cannot be shown. Older cells lack some of the others."""
FINISHED_CELL = fields({"schema": integer, "cell_id": text, **{name: _OF_A_CELL[name] for name in SHOWN}}, _OF_A_CELL)

_METRIC = fields(
    {
        **{"subtask": text, "metric": text, "filter": text, "value": maybe(number), "higher_is_better": flag},
        **{"headline": flag, "corpus": flag, "samples": count},
    }
)
_NUMBERS = dict.fromkeys((*columns_in("metrics.json"), "kl", "agreement"), maybe(number))
METRICS = fields(
    {"metrics": items(_METRIC)},
    {**_NUMBERS, "by_subtask": named(fields({}, _NUMBERS)), "matched": named(anything)},
)

_ERROR = maybe(fields({}, dict.fromkeys(("kind", "class", "message", "where"), maybe(text))))
_ATTEMPT = fields(
    {}, {"attempt": maybe(count), "state": maybe(text), "kind": maybe(text), "started": maybe(text),
         "seconds": maybe(number), "lanes": maybe(count)}
)  # fmt: skip
STATUS = fields(
    {"state": text},
    {
        **{
            "error": _ERROR,
            "invalid": items(text),
            "notes": items(text),
            "attempt": count,
            "attempts": items(_ATTEMPT),
        },
        **{"failures": count, "lanes": count, "together": count, "started": text, "finished": maybe(text)},
        **{"seconds": maybe(number), "steps": named(anything)},
    },
)

PLAN = named(
    fields(
        {"lanes": items(items(count))},
        {"digest": text, "batch_size": count, "batching": text, "seed": integer},
    )
)

_EXPERTS = [f"{name}{of}_active_experts" for name in ("vanilla", "policy") for of in ("", "_prefill")]
_USED = [f"{name}_{what}" for name in ("vanilla", "policy") for what in USED]
BYTES = fields(dict.fromkeys(("once", "expert", "row", "position", "layers"), number))
TIMING = fields(
    {},
    {
        **dict.fromkeys(("new_tokens", "repeats", "warmup_rounds", "batch_size", "attempt", "threads"), count),
        **dict.fromkeys(("precision_reached", "stable"), flag),
        **dict.fromkeys(("context", "prefill_tokens", "cpus"), maybe(count)),
        **dict.fromkeys((*_EXPERTS, "other_threads"), maybe(number)),
        **dict.fromkeys((*_USED, "copy_gb_s", "precision"), number),
        **{"bytes": BYTES, "devices": count},
        "warmup_round_ms": named(items(number)),
    },
)

_VALUES = maybe(named(anything))
PROVENANCE = fields(
    {},
    {
        **{"git": maybe(fields({}, {"revision": maybe(text), "dirty": maybe(flag)})), "code_sha256": maybe(text)},
        **{"model": maybe(fields({}, {"id": maybe(text), "digest": maybe(text)})), "data_sha256": named(text)},
        **{"data_revisions": named(maybe(text)), "command": items(text), "python": text, "platform": text},
        **{"packages": _VALUES, "torch": maybe(fields({}, {"gpus": maybe(items(text)), "threads": maybe(count)}))},
        **{"cpu": maybe(text), "cpus": maybe(count), "gpu": _VALUES, "environment": _VALUES, "numerics": _VALUES},
    },
)

DONE = fields({"files": named(text)}, {"seen": named(items(integer)), "seen_sha256": text})


def _process_id(value: object) -> str | None:
    too_large = isinstance(value, int) and value >= 2**31
    return count(value) or (": no process id" if too_large else None)


CLAIM = fields(
    {"token": text, "host": text, "pid": _process_id},
    {"boot": text, "born": text, "job": maybe(text)},
)
SWEEP = fields(
    {
        **{"schema": integer, "started": text, "command": items(text)},
        "cells": items(fields({"folder": text, "name": text, "requests": count})),
    },
    {"code": maybe(text)},
)

_NAMES: dict[str, Shape] = {
    "cell.json": CELL,
    "metrics.json": METRICS,
    "status.json": STATUS,
    "plan.json": PLAN,
    "timing.json": TIMING,
    "provenance.json": PROVENANCE,
    "config.yaml": named(anything),
    "DONE": DONE,
    "CLAIM": CLAIM,
}


def form_of(name: str) -> Shape:
    """Of a file of a cell, by its name. What is not known holds fields with names."""
    return _NAMES.get(name, named(anything))


def fault(value: object, shape: Shape) -> str | None:
    """What is wrong with the value, in a few words; None if it has the form."""
    found = shape(value)
    return None if found is None else re.sub(r"^: ", "holds ", found)
