"""Do policies make a model ramble? Thoughts and answers against vanilla's, and tokens for each solved document."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import FixedLocator, NullLocator

from analysis.figures import curves, looks, style
from analysis.labels import of_purpose
from analysis.study import Study

NAME = "length_drift"
PANELS = {
    "thought_tokens_difference": "thought (tokens more than vanilla)",
    "answer_tokens_difference": "answer (tokens more than vanilla)",
    "thought_cut_share_difference": "thoughts cut off (share more than vanilla)",
    "tokens_per_solved_difference": "tokens for a solved document (more than vanilla)",
}
_WIDTH = 0.4
"""Octaves that the policies of one batch size take up side by side: less than half of what is between two sizes."""


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """A panel a quantity and subtask, a line a policy over the batch sizes, with 95 % intervals clustered by lane. Of
    studies without thoughts only where it is asked for: then a response is all answer, and the first is left out."""
    rows = study.rows[~of_purpose(study.rows["policy"], "probe")]
    name = f"{NAME}{suffix}"
    if not len(rows) or (rows["thought_tokens"].isna().all() and not style.ASKED.get()):
        return style.absent(name, "looked for thoughts (task.think_end)")
    if rows["thought_tokens"].isna().all():
        # without thoughts a response is an answer
        ends = ("", "_low", "_high")
        rows = rows.assign(**{f"answer_tokens_difference{e}": rows[f"new_tokens_difference{e}"] for e in ends})
    known = {column: label for column, label in PANELS.items() if rows[column].notna().any()}
    rows, left_out = curves.left_out(rows, "answer_tokens_difference")
    rows = rows[rows["policy"] != "vanilla"]
    if rows.empty or not known:
        return style.skip(name, "no policy generated beside vanilla on the same plan")
    # of equal means some differ in the last bit, which an axis would be drawn for
    drawn = [f"{column}{end}" for column in known for end in ("", "_low", "_high")]
    rows = rows.assign(**{column: rows[column].round(9) for column in drawn if column in rows})
    look = looks.looks(rows)
    handles, labels = curves.key(look, rows)
    subtasks = list(dict.fromkeys(rows["subtask"]))
    fig, grid = curves.panels(list(known.values()), len(subtasks), len(labels))
    sizes = sorted(rows["batch_size"].unique())
    for column, line in zip(known, grid, strict=True):
        for subtask, axes in zip(subtasks, line, strict=True):
            own = rows[(rows["subtask"] == subtask) & rows[column].notna()]
            curves.zero(axes)
            curves.curves(axes, own, "batch_size", column, "series", look, _WIDTH / max(1, len(look) - 1), octaves=True)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(sizes))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(sizes, [str(size) for size in sizes])
    for subtask, axes in zip(subtasks, grid[-1], strict=True):
        axes.set_xlabel(f"batch size, {subtask}" if len(subtasks) > 1 else "batch size (rows of a decode step)")
    style.legend(fig, handles, labels)
    return style.save(fig, folder, name, curves.numbers(rows, *known, "s_per_solved"), left_out)
