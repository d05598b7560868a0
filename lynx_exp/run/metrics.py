"""metrics.json: the task's metrics, and how the cell's batches behaved, over the cell and by subtask."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from lynx_exp.store.file_types import MetricEntry
    from lynx_exp.store.row_types import FidelityRow, ResponseRow, StepRow
    from lynx_exp.tasks import Metric


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def metric_entry(metric: Metric) -> MetricEntry:
    """As metrics.json has it: what is not a finite number becomes null."""
    return cast("MetricEntry", asdict(metric) | {"value": metric.value if isfinite(metric.value) else None})


FULL = 0.8
"""Share of steps: a cell with fewer full ones is not a run at its batch size."""


def batch_summary(
    responses: Sequence[ResponseRow], steps: Sequence[StepRow], batch_size: int
) -> dict[str, float | None]:
    """Means over rows of the responses (those scored) and steps tables; None where there is nothing to take a mean of.

    active_experts: over layers and scored tokens, of the experts that ran in the step that made the token: over all
    decode steps, weighted by their scored rows. active_experts_full: over the steps with `batch_size` live rows alone.
    live_rows: over scored tokens, of the rows that were live in the token's step. full_steps: share of steps with
    `batch_size` live rows; scored_share: of all tokens decoded the share that is no filler's. Lengths and the share
    stopped by length are of generations only.
    """
    once = {(step["subtask"], step["lane"], step["step"]): step for step in steps}.values()
    generated = [row for row in responses if row["finish_reason"] != "scored"]
    live, scored = (sum(step[name] for step in once) for name in ("live_rows", "scored_rows"))
    return {
        "active_experts": _weighted(steps, "active_experts"),
        "active_experts_full": _mean(step["active_experts"] for step in steps if step["live_rows"] == batch_size),
        "live_rows": _weighted(once, "live_rows"),
        "full_steps": _mean(step["live_rows"] == batch_size for step in once),
        "scored_share": scored / live if live else None,
        "new_tokens_mean": _mean(row["new_tokens"] for row in generated),
        "length_stop_share": _mean(row["finish_reason"] == "length" for row in generated),
    }


def _weighted(steps: Collection[StepRow], name: Literal["active_experts", "live_rows"]) -> float | None:
    """Mean of a column, each step counting as often as it has scored rows."""
    weight = sum(step["scored_rows"] for step in steps)
    return sum(step[name] * step["scored_rows"] for step in steps) / weight if weight else None


def drained_note(summary: Mapping[str, float | None], batch_size: int) -> str | None:
    """What to say of a cell whose lanes were not full most of the time."""
    full, live = summary["full_steps"], summary["live_rows"]
    if full is None or live is None or full >= FULL:
        return None
    return f"lanes drained: {100 * full:.0f} % of steps full, {live:.1f} of {batch_size} rows live"


def cell_metrics(
    metrics: Sequence[Metric],
    responses: Mapping[str, Sequence[ResponseRow]],
    steps: Sequence[StepRow],
    batch_size: int,
    fidelity: Sequence[FidelityRow] | None = None,
) -> dict[str, Any]:
    """The content of metrics.json. `responses` by task. A metric that is not a finite number becomes null.

    A mix has an entry of its own in `by_subtask`, with the active experts that its subtasks share."""
    rows = [metric_entry(metric) for metric in metrics]
    everything = [row for of_subtask in responses.values() for row in of_subtask]
    names = dict.fromkeys([*responses, *(row["subtask"] for row in everything)])
    by_subtask = {
        name: batch_summary(
            [row for row in everything if row["subtask"] == name] or list(responses.get(name, ())),
            [step for step in steps if step["subtask"] == name],
            batch_size,
        )
        for name in names
    }
    whole = batch_summary(everything, steps, batch_size)
    if fidelity is not None:
        whole |= fidelity_summary(fidelity)
        for subtask, summary in by_subtask.items():
            summary |= fidelity_summary([row for row in fidelity if row["subtask"] == subtask])
    return {"metrics": rows, **whole, "by_subtask": by_subtask}


def fidelity_summary(rows: Sequence[FidelityRow]) -> dict[str, float | None]:
    """Means over tokens: the KL divergence from vanilla (nats), and how often the most likely token is vanilla's."""
    tokens = sum(row["tokens"] for row in rows)
    return {
        "kl": sum(row["kl"] for row in rows) / tokens if tokens else None,
        "agreement": sum(row["agreeing"] for row in rows) / tokens if tokens else None,
    }
