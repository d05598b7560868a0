"""What may be chosen where only a few things may, and the words for what may not."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

PHASES = ("decode", "prefill", "both", "none")
BATCHINGS = ("static", "continuous")
SCORINGS = ("decode", "prefill")
TRUNCATES = ("error", "left")
NOISE_FLOOR_SEED = 1_000_003
"""What policy=noise_floor adds to the seed of the batch plan: nobody counts his seeds so far."""
MIXINGS = ("shuffled", "separate")
SANDBOXES = ("auto", "bubblewrap", "namespaces", "landlock", "unsafe")
BACKENDS = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
EXPERTS_IMPLEMENTATIONS = ("auto", "per_expert", "per_expert_exact", "eager", "batched_mm", "grouped_mm")
KERNELS = ("auto", "torch", "triton")
PARALLEL = ("tp", "ep")
MODEL_KINDS = ("bundled", "hub", "random")
TRACKERS = ("none", "wandb")
WANDB_MODES = ("offline", "online", "disabled")
THEN = ("table", "figures")


def did_you_mean(value: object, known: Collection[str]) -> str:
    """`; did you mean X?` if a known name is close to `value`, else nothing."""
    close = get_close_matches(str(value), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(name: str, value: object, allowed: Collection[str], hint: str = "") -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value}: must be one of {', '.join(allowed)}{hint}{did_you_mean(value, allowed)}")


def at_least(name: str, value: int | None, low: int, *, optional: bool = False) -> None:
    """Raise ValueError unless `value` >= `low` (or is None, where that is allowed)."""
    if value is None and optional:
        return
    if value is None or value < low:
        shown = "null" if value is None else value
        raise ValueError(f"{name}={shown}: must be at least {low}{', or null for no bound' if optional else ''}")
