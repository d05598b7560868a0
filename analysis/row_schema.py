"""Columns of a study's tables (`lynx-results table --json` and `--csv`, `analysis.study.study`): unit and meaning.

Names that the frames of `analysis.load` have (`lynx_exp.store.cell_columns`) mean here what they mean there and are
not repeated.
"""

from __future__ import annotations

from lynx_exp.store.cell_columns import FRAMES as LOADED
from lynx_exp.store.table_columns import Column

ENDS = ("_low", "_high", "_se", "_df")
"""What an estimate X has beside X: the 95 % interval, its standard error and degrees of freedom."""

FRAMES = {
    "rows": "a point of the sweep and a subtask (`--by task`, `subtasks` of `--json`)",
    "summary": "a point of the sweep, mean over its subtasks (`--by mean`, `means` of `--json`)",
    "lanes": "a lane of a mix of tasks",
}
"""What a row of each is."""


def _columns(*rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(name=name, unit=unit, meaning=meaning) for name, unit, meaning in rows)


ESTIMATES = _columns(
    ("score", "points, or own", "percent or BLEU; the metric's own unit where it is neither"),
    ("difference", "points, or own", "to vanilla on the same documents, paired and clustered by lane"),
    ("pass_at_k", "points", "of document_repeats responses scored 0 or 1: documents of which one or more is right"),
    ("pass_at_k_difference", "points", "to vanilla on the same documents, clustered by document and lane"),
    ("step_ms", "ms", "a decode step, of the policy in the timed windows"),
    ("vanilla_step_ms", "ms", "vanilla's on the same steps"),
    ("speedup", "ratio", "the latter over the former; 1 for vanilla"),
    ("run_ms_per_token", "ms", "a decode step over all steps of the run, by the fitted latency model"),
    ("run_speedup", "ratio", "vanilla's over the policy's, over every step of the run"),
    ("tokens_per_s", "tokens/s", "decoded by one lane, over the whole run"),
    ("us_per_expert", "µs", "what one more active expert of a layer adds to a step, by the latency model"),
    ("active_experts", "experts per layer and step", "distinct experts in the steps that made the scored tokens"),
    ("changed", "share 0..1", "assignments of decode steps that the policy changed"),
    ("prompt_changed", "share 0..1", "likewise of prompts, where the policy acts on them"),
    ("kl", "mnat per token", "divergence of next-token distributions from vanilla's, on vanilla's responses"),
    ("agreement", "%", "tokens where the most likely one is vanilla's"),
    ("retained", "share 0..1", "the router's top-k mass that runs in decode steps, on vanilla's responses"),
    ("prompt_retained", "share 0..1", "likewise of prompts, where the policy acts on them"),
    ("new_tokens", "tokens", "mean length of a response"),
    ("new_tokens_difference", "tokens", "paired difference to vanilla's"),
    ("length_stop_share", "share 0..1", "responses that the length limit cut off"),
    ("length_stop_share_difference", "share 0..1", "paired difference to vanilla's"),
    ("thought_tokens", "tokens", "mean length of a thought, the marker of its end included; missing = none looked for"),
    ("thought_tokens_difference", "tokens", "paired difference to vanilla's"),
    ("answer_tokens", "tokens", "mean length of what follows a thought"),
    ("answer_tokens_difference", "tokens", "paired difference to vanilla's"),
    ("thought_cut_share", "share 0..1", "responses that were over before their thought was"),
    ("thought_cut_share_difference", "share 0..1", "paired difference to vanilla's"),
    ("tokens_per_solved", "tokens", "of all responses, over the documents that were solved (the sum of their scores)"),
    ("tokens_per_solved_difference", "tokens", "to vanilla's on the same documents, clustered by lane"),
    ("s_per_solved", "s", "of a lane for each solved document: these tokens over tokens_per_s, prefills apart"),
)
"""Each is five columns: X, X_low, X_high, X_se and X_df."""

PLAIN = _columns(
    ("setting", "-", "what all rows of a table have in common, apart from batch size and subtask"),
    ("series", "-", "policy label, with the phases unless decode"),
    ("cell_ids", "-", "cells that were pooled into the row, joined by spaces"),
    ("cells", "cells", "averaged"),
    ("plans", "plans", "batch plans that were pooled"),
    ("plan_sd", "points, or own", "standard deviation of the score between plans"),
    ("difference_plan_sd", "points, or own", "likewise of the difference"),
    ("difference_pad", "points", "what the interval is widened by for changes too few to estimate a variance from"),
    ("metric", "-", "headline metric, as lm-eval calls it"),
    ("filter", "-", "answer filter that it was computed behind"),
    ("unit", "-", "of the score: %, BLEU, or own"),
    ("higher_is_better", "-", "direction of the metric"),
    ("subtask", "-", "one lm-eval task"),
    ("subtasks", "subtasks", "that were averaged; compare only rows that have as many as all_subtasks"),
    ("all_subtasks", "subtasks", "that the setting has at this batch size"),
    ("documents", "documents", "behind the score"),
    ("document_repeats", "responses", "to each document, scored one by one; score is their mean (avg@k)"),
    ("lanes", "lanes", "behind the score: the clusters of the interval"),
    ("paired", "-", "whether vanilla ran on the same plan"),
    ("better", "documents", "that score higher than under vanilla"),
    ("worse", "documents", "that score lower than under vanilla"),
    ("p_mcnemar", "probability", "McNemar's test of the two; takes documents for independent"),
    ("windows", "windows", "places of the run that were timed"),
    ("tpot_ms", "ms", "(E2E - TTFT) / (n - 1) of a request in its lane, median over requests"),
    ("latency_residual", "%", "what the latency model misses a timed step by, median"),
    ("fixed_ms", "ms", "what a step costs besides rows, experts and positions, the selection included"),
    ("speedup_disagrees", "-", "whether speedup and run_speedup differ beyond the errors of both"),
    ("timing_final", "-", "whether a time may be ranked: near the precision asked for, machine not busy"),
    ("guard", "-", "how responses leave vanilla's band; empty inside it, - where nothing can be compared"),
    ("guarded", "-", "subtasks that are flagged"),
    ("margin", "points", "the difference that is tested for"),
    ("p_difference", "probability", "that there is no difference"),
    (
        "p_holm",
        "probability",
        "that, after Holm's correction: of a mean over all means, of a subtask over all means and subtasks",
    ),
    ("p_within", "probability", "that the difference is larger than the margin (two one-sided tests)"),
    ("lanes_needed", "lanes", "with which a kind of lane too rare to be seen could not cost the margin"),
    ("verdict", "-", "within, few lanes, worse, better, worse?, better?, open, or - (`analysis.verdicts`)"),
    ("documents_needed", "documents", "of an undecided row: enough to show equivalence if nothing changed"),
    ("composition", "-", "requests of the lane by subtask"),
    ("requests", "requests", "of the lane"),
    ("effective_tasks", "tasks", "exp of the entropy of the requests' shares: 1 for one task, S for S in equal parts"),
)


def declared() -> dict[str, Column]:
    """By name; of an estimate X all five columns stand as X."""
    return {column.name: column for column in (*LOADED["cells"], *LOADED["steps"], *ESTIMATES, *PLAIN)}


def known(name: str) -> bool:
    """Whether a column of a study's frames is declared."""
    estimates = {column.name for column in ESTIMATES}
    return name in declared() or any(name.removesuffix(end) in estimates for end in ENDS if name.endswith(end))
