"""Which setting to take: the fastest that is shown to be within a margin of vanilla, and why not the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import guards, statistics, verdicts
from analysis.frame_rows import Row
from analysis.frontiers import ACTIVE, SPEEDUP, Saving
from analysis.labels import of_purpose
from analysis.layout import WIDTH, interval, one_lane_legend, print_legend, print_warnings
from analysis.outputs import write_csv
from analysis.statistics import LEVEL
from analysis.study import Study
from lynx_exp.terminal import Terminal

ALL = "all subtasks"
RECOMMENDED = "recommended"
ALONE = "within, but not as one of so many (Holm)"


def recommendations(study: Study, by: Saving | None = None) -> pd.DataFrame:
    """One row a candidate, per setting, batch size and scope (a subtask, or all of them together), those ahead first.

    `saving` names what is ranked by: `by`, or else `speedup`, and `active_experts` where no candidate of the scope was
    timed; `value`, `value_low` and `value_high` are that, and `saves` tells whether it is better than vanilla's, in the
    digits that tables print. `p_within` is Holm-corrected over the candidates of the scope that could be
    chosen (paired, with all subtasks, their saving on record): the fastest of many is taken, and one that passes by
    luck would be. `why` is "recommended" for the first shown to be within `study.margin` points that saves something
    and draws no flag; of each other what is against it.
    """
    frames = [study.rows.assign(scope=study.rows["subtask"])]
    if len(study.summary) and study.summary["all_subtasks"].max() > 1:
        frames.append(study.summary.assign(scope=ALL))
    rows = []
    for frame in frames:
        frame = _beside_vanilla(frame)
        candidates = frame[of_purpose(frame["policy"], "method") & (frame.get("unit", "%") != "own")]
        for _, group in candidates.groupby(["setting", "batch_size", "scope"], sort=True):
            rows += _ranked(group, study.margin, by)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _beside_vanilla(frame: pd.DataFrame) -> pd.DataFrame:
    """With `vanilla_active`: vanilla's active experts on the same plan; NaN without one."""
    place = ["setting", "batch_size", "scope"]
    vanilla = frame[frame["policy"] == "vanilla"].groupby(place)[ACTIVE.column].mean().rename("vanilla_active")
    return frame.merge(vanilla.reset_index(), on=place, how="left")


_KEPT = ("setting", "batch_size", "scope", "series", "policy", "policy_params", "phases")
_DIFFERENCE = (
    "difference",
    "difference_low",
    "difference_high",
    "verdict",
    "guard",
    "documents_needed",
    "timing_final",
)
_COLUMNS = [*_KEPT, "saving", "value", "value_low", "value_high", *_DIFFERENCE, "saves", "p_within", "why"]


def _ranked(group: pd.DataFrame, margin: float, by: Saving | None) -> list[dict[str, object]]:
    saving = by or (SPEEDUP if group["speedup"].notna().any() else ACTIVE)
    seen, paired = group[saving.column].notna(), group["paired"].astype(bool)
    complete = group["subtasks"] >= group["all_subtasks"] if "subtasks" in group else True
    rivals = group["p_within"].where(seen & paired & complete)
    adjusted = np.where(rivals.notna(), statistics.holm(rivals), group["p_within"])
    fewer = (group[ACTIVE.column].round(2) < group["vanilla_active"].round(2)) | group["vanilla_active"].isna()
    saves = group[SPEEDUP.column] > 1 if saving is SPEEDUP else fewer
    ordered = group.assign(p_within=adjusted, seen=seen, saves=saves)
    ordered["ahead"] = saving.sign * ordered[saving.column]
    ordered = ordered.sort_values(["seen", "ahead"], ascending=False, kind="stable")
    rows: list[dict[str, object]] = []
    best: float | None = None
    for row in ordered.to_dict("records"):
        against = _against(row, saving, margin)
        if against is None and best is None:
            best, against = float(row[saving.column]), RECOMMENDED
        elif against is None:
            against = f"within, but {_behind(saving, row[saving.column], best)}"
        value = {f"value{end}": row[f"{saving.column}{end}"] for end in ("", "_low", "_high")}
        kept = {name: row[name] for name in (*_KEPT, *_DIFFERENCE, "saves", "p_within")}
        rows.append(kept | {"saving": saving.column, "why": against} | value)
    return rows


def _behind(saving: Saving, value: float, best: float | None) -> str:
    return f"slower: {value:.2f} < {best:.2f}" if saving is SPEEDUP else f"more experts: {value:.2f} > {best:.2f}"


def _against(row: Row, saving: Saving, margin: float) -> str | None:
    """What speaks against a candidate, the gravest first; None if nothing does."""
    if not row["paired"]:
        return "no vanilla partner to compare with"
    if row.get("subtasks", 0) < row.get("all_subtasks", 0):
        return f"only {row['subtasks']} of {row['all_subtasks']} subtasks done"
    obstacle = _obstacle(row, saving)
    if row["p_within"] < 1 - LEVEL and row["verdict"] != verdicts.FEW_LANES:
        return obstacle
    return (obstacle or ALONE) if row["verdict"] == verdicts.WITHIN else _not_within(row, margin)


def _obstacle(row: Row, saving: Saving) -> str | None:
    """What speaks against a candidate that is within the margin."""
    if guards.is_flagged(row["guard"]):
        return f"within, but look at its responses: {row['guard']}"
    if not row["seen"]:
        return f"within, but no {saving.label[0]} on record"
    if saving is SPEEDUP and not row["timing_final"]:
        return "within, but its time is not final: precision missed, or machine busy"
    if not row["saves"]:
        return f"within, but {'no faster than' if saving is SPEEDUP else 'as many experts as'} vanilla"
    return None


def _not_within(row: Row, margin: float) -> str:
    if row["verdict"] == verdicts.WORSE:
        return "worse than vanilla"
    if row["verdict"] == verdicts.BETTER:
        return f"better than vanilla, perhaps by more than {margin:g}"
    if row["verdict"] == verdicts.PERHAPS_WORSE:
        return "worse, were it the only row"
    if row["verdict"] == verdicts.PERHAPS_BETTER:
        return "better, were it the only row"
    if row["verdict"] == verdicts.FEW_LANES:
        return f"within, if lanes are alike: {row['lanes_needed']:,.0f} lanes"
    if row["verdict"] == verdicts.OPEN:
        return f"undecided: {row['documents_needed']:,.0f} documents"
    return "no interval: a single lane"


def print_recommendations(
    study: Study, console: Console | None = None, csv: str | Path | None = None, by: Saving | None = None
) -> None:
    """One block per setting, batch size and scope, the scope of all subtasks first. `by`: as in `recommendations`."""
    console = console or Terminal(emoji=False, width=WIDTH)
    print_warnings(study.warnings, console)
    frame = recommendations(study, by)
    if frame.empty:
        console.print("no candidate: only vanilla, controls and probes are on record", highlight=False)
    for setting, of_setting in frame.groupby("setting", sort=True):
        for batch, of_batch in of_setting.groupby("batch_size", sort=True):
            for scope in sorted(of_batch["scope"].unique(), key=lambda name: (name != ALL, name)):
                heading = " · ".join(str(part) for part in (scope, f"batch size {batch}", setting) if part)
                _print_block(of_batch[of_batch["scope"] == scope], heading, study.margin, console)
    print_legend([_LEGEND.format(margin=f"{study.margin:g}"), one_lane_legend(frame)], console)
    if csv is not None:
        file = Path(csv)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_csv(file, frame)
        console.print(f"wrote {file}", soft_wrap=True, markup=False)


_LEGEND = (
    "Within ±{margin} of vanilla at 95 %: two one-sided tests, Holm over the candidates of a block. Ranked by measured "
    "speed-up, or by active experts where none was timed (or --by wants it); ~: its precision was not reached or the "
    "machine was busy. undecided: N documents would show it if the policy changed nothing (power 80 %). !: responses "
    "outside vanilla's band (see the table). Vanilla, controls and probes are no candidates."
)


def _print_block(block: pd.DataFrame, heading: str, margin: float, console: Console) -> None:
    timed = block["saving"].iloc[0] == SPEEDUP.column
    table = Table(title=Text(heading, "bold"), title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in (("candidate", 33), ("speed-up" if timed else "active experts", 17), ("difference", 19)):
        table.add_column(name, width=width, overflow="fold")
    table.add_column("", width=WIDTH - 33 - 17 - 19 - 3)
    for row in block.sort_values("why", key=lambda why: why != RECOMMENDED, kind="stable").to_dict("records"):
        taken = row["why"] == RECOMMENDED
        label = row["series"] + (" !" if guards.is_flagged(row["guard"]) else "")
        unsure = "~" if timed and not row["timing_final"] else ""
        value = _shown(row, "value", "{:.2f}") + unsure
        cells = (label, value, _shown(row, "difference", "{:+.1f}"), row["why"])
        table.add_row(*map(Text, cells), style="bold green" if taken else "")
    console.print(table)
    if not (block["why"] == RECOMMENDED).any():
        console.print(Text(f"none: no candidate is shown to be within ±{margin:g} and to save anything", "yellow"))
    console.print()


def _shown(row: Row, name: str, form: str) -> str:
    return str(interval(row, name, form))
