"""What may be chosen where only a few things may, and the words for what may not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from lynx_exp.wording import did_you_mean

PHASES = ("decode", "prefill", "both", "none")
BATCHINGS = ("auto", "continuous", "static")
TAILS = ("filler", "drain")
CHOICES = ("spread", "together")
SCORINGS = ("decode", "prefill")
TRUNCATES = ("error", "left")
NOISE_FLOOR_SEED = 1_000_003
"""What policy=noise_floor adds to the seed of the batch plan: nobody counts his seeds so far."""
GENERATIONS = ("task", "model")
MIXINGS = ("shuffled", "separate")
SANDBOXES = ("auto", "bubblewrap", "namespaces", "landlock", "unsafe")
BACKENDS = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
EXPERTS_IMPLEMENTATIONS = ("auto", "per_expert", "per_expert_exact", "few_rows", "eager", "batched_mm", "grouped_mm")
KERNELS = ("auto", "torch", "triton")
STEPS = ("auto", "captured", "eager")
PARALLEL = ("tp", "ep")
MODEL_KINDS = ("bundled", "hub", "random")
MODEL_SIZES = ("experts", "top_k", "layers", "hidden", "expert_hidden", "heads", "kv_heads", "vocab", "positions")
"""Of a random model: as `lynx_exp.models.family_sizes` takes them."""
TRACKERS = ("none", "wandb")
WANDB_MODES = ("offline", "online", "disabled")
FIRST = ("calibrate",)
THEN = ("table", "figures")
MOST = 2**31 - 1
"""Of a count that has no bound of its own."""
MOST_PLAN_SEEDS = 1000
"""Copies of every cell of a multirun."""
MOST_ROWS = 2**20
"""Of one batch, and of the steps that are timed."""
MOST_THREADS = 1024
"""More end a process in OpenMP rather than in an error."""
LARGEST_SEED = 2**32 - 1
"""What every generator of random numbers takes."""
LONGEST_NAME = 200
"""Letters of a study's name: file systems take 255 bytes, and some files are called after it."""


def one_of(name: str, value: object, allowed: Collection[str], hint: str = "") -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value}: must be one of {', '.join(allowed)}{hint}{did_you_mean(value, allowed)}")


def at_least(name: str, value: int | None, low: int, *, most: int = MOST, optional: bool = False) -> None:
    """Raise ValueError unless `low` <= `value` <= `most` (or it is None, where that is allowed)."""
    if value is None and optional:
        return
    if value is None or not low <= value <= most:
        shown = "null" if value is None else value
        bound = f"at most {most}" if value is not None and value > most else f"at least {low}"
        raise ValueError(f"{name}={shown}: must be {bound}{', or null for no bound' if optional else ''}")


def finite(name: str, value: object) -> None:
    """Raise ValueError for an infinity, NaN or an integer beyond 64 bits anywhere in `value`; its parts are named."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            finite(f"{name}.{key}" if name else str(key), part)
    elif isinstance(value, list | tuple):
        for part in value:
            finite(name, part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value}: must be a finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}={value}: must be an integer of at most 64 bits")
