"""Two answers to one question: what of the second is not as in the first."""

# N documents that both have, G lanes

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import bleu, latency, statistics
from analysis.statistics import Estimate
from lynx_exp.store.read import CellRecord
from lynx_exp.store.step_times import step_ms_per_window

BLEU = "bleu"


@dataclass(frozen=True, kw_only=True)
class MetricChange:
    subtask: str
    name: str
    """`metric,filter`"""
    unit: str
    """% where all scores lie in 0..1, else the metric's own."""
    before: float | None
    """In the unit; None: not there, or no number."""
    after: float | None
    difference: Estimate | None
    """After minus before, of the same documents, clustered by lane; None where they cannot be paired."""
    shared: int
    """Documents that both scored: those of `difference`. The values are over all that each side has."""
    documents: tuple[int, int]
    """Scored before and after."""

    @property
    def is_equal(self) -> bool:
        return self.before == self.after


@dataclass(frozen=True, kw_only=True)
class ResponseChanges:
    compared: int
    """Requests that both answered."""
    changed: int
    """Of them: with another text, length, ending or log-likelihood."""
    one_sided: int
    """Requests that only one answered."""
    other_prompts: int
    """Of those compared: asked otherwise."""
    logprob: float
    """Largest change of a log-likelihood, nats; 0 where there is none."""
    example: tuple[str, str, str] | None
    """The first changed: (subtask and request, before, after)."""


@dataclass(frozen=True, kw_only=True)
class CellComparison:
    metrics: list[MetricChange]
    responses: ResponseChanges
    same_plan: bool
    """Lanes hold the same requests."""
    same_steps: bool
    """Live rows and active experts of every step and layer are equal."""
    active: tuple[float | None, float | None]
    """Mean active experts, before and after."""
    active_difference: Estimate | None
    """Of lanes that both have, each counted once."""
    kl: tuple[float | None, float | None]
    """Divergence from vanilla, nats a token."""
    step_ms: tuple[Estimate | None, Estimate | None]
    """A decode step."""

    @property
    def is_equal(self) -> bool:
        """In science: all but times."""
        same = self.responses
        nothing = same.changed == same.one_sided == same.other_prompts == 0
        scores = all(metric.is_equal for metric in self.metrics)
        return nothing and scores and self.same_plan and self.same_steps and self.kl[0] == self.kl[1]


def _scored(responses: pd.DataFrame) -> pd.DataFrame:
    """Without fillers: another plan fills lanes with others."""
    return responses[~responses["filler"].astype(bool)] if "filler" in responses else responses


def compare_cells(before: CellRecord, after: CellRecord) -> CellComparison:
    """Compare two finished cells, row by row where both have the row."""
    responses = [_scored(record.responses().to_pandas()) for record in (before, after)]
    steps = [record.steps().to_pandas() for record in (before, after)]
    places = [frame.set_index(["subtask", "request"])[["lane", "slot"]].sort_index() for frame in responses]
    orders = ["subtask", "lane", "step", "layer"]
    sorted_steps = [frame.sort_values(orders, ignore_index=True) for frame in steps]
    kl = (before.metrics.get("kl"), after.metrics.get("kl"))
    return CellComparison(
        metrics=_metrics(before, after),
        responses=_responses(*responses),
        same_plan=places[0]["lane"].equals(places[1]["lane"]),
        same_steps=sorted_steps[0].equals(sorted_steps[1]),
        active=(before.metrics.get("active_experts"), after.metrics.get("active_experts")),
        active_difference=_active(*steps),
        kl=kl if None not in kl else (None, None),
        step_ms=(_step_ms(before), _step_ms(after)),
    )


def _metrics(before: CellRecord, after: CellRecord) -> list[MetricChange]:
    rows = [
        {(row["subtask"], f"{row['metric']},{row['filter']}"): row for row in record.metrics["metrics"]}
        for record in (before, after)
    ]
    samples = [record.samples().to_pandas() for record in (before, after)]
    found = []
    for key in dict.fromkeys([*rows[0], *rows[1]]):
        subtask, name = key
        own = [frame[frame["subtask"] == subtask].set_index("doc_id") for frame in samples]
        shared = own[0].index.intersection(own[1].index)
        paired = [frame.loc[shared] for frame in own]
        values = [row[key]["value"] if key in row else None for row in rows]
        unit, factor, difference = "own", 1.0, None
        if all(key in row for row in rows) and len(shared):
            if not rows[0][key]["corpus"]:
                unit, factor, difference = _paired(paired[0], paired[1], name)
            elif name.partition(",")[0] == BLEU and rows[0][key]["headline"]:
                counts = [bleu.sentence_counts(list(part["filtered"]), list(part["target"])) for part in paired]
                unit, difference = "BLEU", bleu.paired_bleu_difference(counts[1], counts[0], paired[0]["lane"])
        scaled = [None if value is None else value * factor for value in values]
        found.append(
            MetricChange(
                subtask=subtask,
                name=name,
                unit=unit,
                before=scaled[0],
                after=scaled[1],
                difference=difference,
                shared=len(shared),
                documents=(len(own[0]), len(own[1])),
            )
        )
    return found


def _paired(before: pd.DataFrame, after: pd.DataFrame, name: str) -> tuple[str, float, Estimate | None]:
    """(unit, factor to it, difference) of scores that each document has of its own."""
    scores_N = [np.array([json.loads(text).get(name, math.nan) for text in part["scores"]]) for part in (before, after)]
    known_N = ~np.isnan(scores_N[0]) & ~np.isnan(scores_N[1])
    old_N, new_N, lanes_N = scores_N[0][known_N], scores_N[1][known_N], before["lane"].to_numpy()[known_N]
    if not len(old_N):
        return "own", 1.0, None
    if min(old_N.min(), new_N.min()) < 0 or max(old_N.max(), new_N.max()) > 1:
        return "own", 1.0, statistics.ratio_of_sums(*statistics.cluster_sums(new_N - old_N, lanes_N))
    return "%", 100.0, statistics.paired_difference(new_N, old_N, lanes_N).scaled(100)


def _responses(before: pd.DataFrame, after: pd.DataFrame) -> ResponseChanges:
    keys = ["subtask", "request"]
    both = before.merge(after, on=keys, suffixes=("_before", "_after")).sort_values(keys, ignore_index=True)
    changed = np.zeros(len(both), bool)
    for name in ("response", "new_tokens", "finish_reason", "logprob", "greedy"):
        old, new = both[f"{name}_before"], both[f"{name}_after"]
        changed |= ((old != new) & ~(old.isna() & new.isna())).to_numpy(dtype=bool)
    distance = (both["logprob_after"].astype(float) - both["logprob_before"].astype(float)).abs().max()
    return ResponseChanges(
        compared=len(both),
        changed=int(changed.sum()),
        one_sided=len(before) + len(after) - 2 * len(both),
        other_prompts=int((both["prompt_hash_before"] != both["prompt_hash_after"]).sum()),
        logprob=0.0 if math.isnan(distance) else float(distance),
        example=_example(both[changed].iloc[0].to_dict()) if changed.any() else None,
    )


def _example(row: dict[str, object]) -> tuple[str, str, str]:
    shown = []
    for side in ("before", "after"):
        scored = row[f"finish_reason_{side}"] == "scored"
        ended = f"{row[f'new_tokens_{side}']} tokens, {row[f'finish_reason_{side}']}"
        what = f"log-likelihood {row[f'logprob_{side}']!r}" if scored else f"{row[f'response_{side}']!r} ({ended})"
        shown.append(what)
    return f"{row['subtask']} {row['request']}", shown[0], shown[1]


def _active(before: pd.DataFrame, after: pd.DataFrame) -> Estimate | None:
    lanes = ["subtask", "lane"]
    old, new = (frame.groupby(lanes)["active_experts"].mean() for frame in (before, after))
    change_G = (new - old).dropna().to_numpy(dtype=float)
    return statistics.ratio_of_sums(change_G, np.ones(len(change_G))) if len(change_G) else None


def _step_ms(record: CellRecord) -> Estimate | None:
    timing = record.timing()
    if timing is None:
        return None
    frame = timing.to_pandas()
    name = "policy" if "policy" in set(frame["name"]) else "vanilla"
    return latency.mean_step(step_ms_per_window(frame, name))
