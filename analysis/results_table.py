"""The results table: a line that says what came of it, the means over subtasks, and on request each subtask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.text import Text

from analysis import columns, guards, outputs
from analysis.frame_rows import Row
from analysis.layout import WIDTH, one_lane_legend, print_legend, title, wrapped
from lynx_exp.wording import counted

By = Literal["mean", "task", "all"]
"""Which blocks: means over subtasks, each subtask, or both."""

SORTS = ("policy", "score", "difference", "speedup", "run_speedup", "active_experts", "kl")
"""What rows may be ordered by; all but `policy` put the best first."""

_FEWER_IS_BETTER = ("active_experts", "kl")


def print_rows(
    rows: pd.DataFrame, summary: pd.DataFrame, console: Console, *, by: By = "all", sort: str = "policy"
) -> None:
    """Macro means per batch size and one table per (setting, subtask, batch size), both with the columns of
    `verdicts.judged`. Where there is one subtask, its own block stands for the means."""
    single = rows["subtask"].nunique() == 1 or summary.empty
    if by in ("mean", "all") and not single:
        for (setting, batch), group in summary.groupby(["setting", "batch_size"], sort=True):
            heading = title("mean over subtasks", f"batch size {batch}", setting)
            ran = rows[(rows["setting"] == setting) & (rows["batch_size"] == batch)]["subtask"].unique()
            _print_block(group, heading, f"{_subtasks(sorted(ran), heading)}, points", console, sort)
    if by in ("task", "all") or single:
        for (setting, task, subtask, batch), group in rows.groupby(
            ["setting", "task", "subtask", "batch_size"], sort=True
        ):
            name = task if task == subtask else f"{task}: {subtask}"
            _print_block(group, title(name, f"batch size {batch}", setting), _about(group.iloc[0]), console, sort)
    _print_repeats(rows, console)
    _print_drift(rows, console)
    compared = summary[summary["kl"].notna()] if len(summary) else summary
    if by != "task" and len(compared):
        for (setting, batch), group in compared.groupby(["setting", "batch_size"], sort=True):
            heading = title("distance from vanilla", f"batch size {batch}", setting)
            about = f"mean over {counted(group['all_subtasks'].max(), 'subtask')}"
            ordered = group.sort_values("active_experts", kind="stable")
            columns.print_table(ordered, columns.FIDELITY, _heading(heading, about), console)
            console.print()
    if by != "task" and len(summary):
        _print_hardware(summary, console)
    print_legend([one_lane_legend(rows)], console)
    if by == "mean" and not single:
        console.print(Text("Each subtask: --by task. Legend and columns: --legend, docs/records.md.", style="dim"))
    else:
        explain(rows, summary, console)


def _subtasks(names: Sequence[str], heading: str) -> str:
    """How many, and which where the line has room for them."""
    named = counted(len(names), "subtask")
    listed = f"{named}: {', '.join(names)}"
    return listed if len(heading) + len(listed) + len("   , points") <= WIDTH else named


def _print_repeats(rows: pd.DataFrame, console: Console) -> None:
    """A table of each subtask and batch size whose documents were answered several times."""
    several = rows[rows["document_repeats"] > 1] if "document_repeats" in rows else rows[:0]
    for (setting, subtask, batch), group in several.groupby(["setting", "subtask", "batch_size"], sort=True):
        heading = title(f"repeats: {subtask}", f"batch size {batch}", setting)
        columns.print_table(group, columns.REPEATS, _heading(heading, "clustered by document and lane"), console)
        console.print()


def _print_drift(rows: pd.DataFrame, console: Console) -> None:
    """A table of each subtask and batch size whose thoughts were looked for."""
    thought = rows[rows["thought_tokens"].notna()] if "thought_tokens" in rows else rows[:0]
    for (setting, subtask, batch), group in thought.groupby(["setting", "subtask", "batch_size"], sort=True):
        heading = title(f"lengths: {subtask}", f"batch size {batch}", setting)
        columns.print_table(group, columns.DRIFT, _heading(heading, "tokens of thought and answer"), console)
        console.print()


def _print_hardware(summary: pd.DataFrame, console: Console) -> None:
    """A table of each batch size, where bytes or joules are on record."""
    measured = summary[summary[["step_gb", "j_per_token"]].astype(float).notna().any(axis=1)]
    for (setting, batch), group in measured.groupby(["setting", "batch_size"], sort=True):
        rates = group["copy_gb_s"].dropna()
        about = f"a plain copy: {rates.median():.3g} GB/s" if len(rates) else "energy only"
        heading = title("what the hardware gave", f"batch size {batch}", setting)
        console.print(columns.rich_table(group, columns.HARDWARE, _heading(heading, about)))
        console.print()


def explain(rows: pd.DataFrame, summary: pd.DataFrame, console: Console) -> None:
    """The legend: what the columns that are shown mean."""
    flagged = rows["guard"].map(guards.is_flagged).any()
    timed = "step_ms" in rows and rows["step_ms"].notna().any()
    compared = len(summary) and summary["kl"].notna().any()
    parts = [_LEGEND.format(margin=f"{rows['margin'].iloc[0]:g}")]
    parts += [_TIMES_LEGEND] if timed else []
    parts += [_FIDELITY_LEGEND] if compared else []
    parts += [_HARDWARE_LEGEND] if len(summary) and summary["step_gb"].notna().any() else []
    parts += [_REPEATS_LEGEND] if "document_repeats" in rows and (rows["document_repeats"] > 1).any() else []
    parts += [_DRIFT_LEGEND] if "thought_tokens" in rows and rows["thought_tokens"].notna().any() else []
    parts += [_GUARD_LEGEND] if flagged else []
    print_legend(parts, console)
    console.print()


_LEGEND = (
    "[low,high]: 95 % interval, clustered by lane. difference: to vanilla on the same documents, points. "
    "test: ±{margin}, within {margin} of vanilla at 95 % (two one-sided tests); worse or better, beyond chance (5 %, "
    "Holm over all means; a subtask over all rows), with ? as the only row, but not among so many; ≥N, "
    "undecided: with N documents ±{margin} would show if nothing changed (power 80 %). ≥NL: ±{margin} if lanes are "
    "alike, but it takes N lanes to have seen a rare kind that loses half its documents. act. exp.: "
    "distinct experts a layer in the steps that made the scored tokens. full: steps in which every slot "
    "was taken. Policies act in decode unless a phase is named. score: percent, or BLEU. -: nothing to "
    "compare, one lane alone, or not measured."
)

_TIMES_LEGEND = (
    "step: a decode step's time, the policy's and vanilla's on the same steps. speed-up: their ratio over "
    "windows of the run; ~ if its precision was not reached or the machine was busy: no candidate. run: "
    "speed-up over every step of the run, by the fitted latency model; ≠ where the measured one differs."
)

_FIDELITY_LEGEND = (
    "KL: divergence of next-token distributions from vanilla's on vanilla's responses, millinats per "
    "token. agree: tokens where the most likely one is vanilla's. select: the selection alone, per layer."
)

_HARDWARE_LEGEND = (
    "GB a step: active experts, all other weights, keys and values, read once (the bytes model). % of "
    "copy: of the rate of a plain copy (MoE-CAP's S-MBU against a measured rate; above 100 caches serve). "
    "expert: a step's time for one more in a layer; fixed: besides rows, experts and positions."
)

_DRIFT_LEGEND = (
    "thought, answer: mean tokens, and paired with vanilla's. cut: responses that were over before their "
    "thought. tokens a solved: of all responses, over the documents solved; s: of a lane for these tokens."
)

_REPEATS_LEGEND = (
    "avg@n: mean score of n responses to a document, which is the score above. pass@n: documents of which "
    "one or more of them is right. Both of 0 to 100."
)

_GUARD_LEGEND = (
    f"!: responses outside vanilla's band: on the same requests over {100 * guards.TOKENS_BAND:.0f} % more or fewer"
    f" tokens, or over {100 * guards.LENGTH_STOP_BAND:.0f} points more or fewer cut off by the length limit (or in a"
    f" thought), and beyond chance or over {guards.SIZE_ALONE:g} times that much."
)


def _print_block(group: pd.DataFrame, heading: str, about: str, console: Console, sort: str) -> None:
    """A table, a line for each flagged row, then a blank one."""
    group = ordered(group, sort)
    columns.print_table(group, columns.RESULTS, _heading(heading, about), console)
    for row in group.to_dict("records"):
        if guards.is_flagged(row["guard"]):
            console.print(wrapped(f"! {row['series']}: {_what_is_off(row)}", "red"))
    console.print()


def ordered(rows: pd.DataFrame, sort: str) -> pd.DataFrame:
    """Vanilla first, then by `sort`, the best first, what has no number last. ValueError for an unknown name."""
    if sort not in SORTS:
        raise ValueError(f"--sort {sort}: must be one of {', '.join(SORTS)}")
    if sort == "policy" or sort not in rows:
        return rows
    sign = 1 if sort in _FEWER_IS_BETTER else -1
    first = rows["policy"] != "vanilla"
    return rows.assign(_first=first, _by=sign * rows[sort].astype(float)).sort_values(
        ["_first", "_by"], kind="stable", na_position="last"
    )


def _heading(name: str, about: str) -> Text:
    return Text.assemble((name, "bold"), (f"   {about}", "dim"))


def _about(first: pd.Series) -> str:
    behind = first["metric"] if first["filter"] in (None, "none", "") else f"{first['metric']} ({first['filter']})"
    unit = {"%": ", %", "own": ""}.get(first["unit"], f", {first['unit']}")
    if first.get("document_repeats", 1) > 1:
        behind = f"{behind}, avg@{first['document_repeats']:.0f}"
    return f"{behind}{unit}; {counted(first['documents'], 'document')} in {counted(first['lanes'], 'lane')}"


def _what_is_off(row: Row) -> str:
    if "guarded" in row:
        return f"{row['guard']} in {row['guarded']}"
    tokens, stops = row["new_tokens"], 100 * row["length_stop_share"]
    before, stops_before = tokens - row["new_tokens_difference"], stops - 100 * row["length_stop_share_difference"]
    form = "{:.0f}" if min(tokens, before) >= 20 else "{:.1f}"
    length = f"{form.format(tokens)} tokens a response, vanilla {form.format(before)}"
    return f"{length}; {stops:.0f} % cut off, vanilla {abs(stops_before):.0f} %"


def write_csv(rows: pd.DataFrame, summary: pd.DataFrame, lanes: pd.DataFrame, file: str | Path) -> list[Path]:
    """Write the rows to `file`, the macro means beside it (`NAME_summary.csv`), and where a mix ran its lanes
    (`NAME_lanes.csv`); returns the paths."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = {name: file.with_name(f"{file.stem}_{name}{file.suffix or '.csv'}") for name in ("summary", "lanes")}
    outputs.write_csv(file, rows)
    outputs.write_csv(beside["summary"], summary)
    if len(lanes):
        outputs.write_csv(beside["lanes"], lanes)
    return [file, beside["summary"], *([beside["lanes"]] if len(lanes) else [])]


_MIX_LEGEND = (
    "Lanes count once each. difference: experts, shuffled lanes minus separate ones of the same requests. "
    "tasks: effective number of tasks in a lane, exp of the entropy of its requests' shares."
)


def print_mixes(summary: pd.DataFrame, console: Console) -> None:
    """For each mix and batch size, what sharing lanes does to active experts; `summary` of `composition`."""
    if summary.empty:
        return
    for (setting, task, batch), group in summary.groupby(["setting", "task", "batch_size"], sort=True):
        heading = title(f"{task}: experts by what shares a lane", f"batch size {batch}", setting)
        columns.print_table(group, columns.MIXES, Text(heading, "bold"), console)
        console.print()
    print_legend([_MIX_LEGEND], console)
