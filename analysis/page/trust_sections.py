"""Sections on how far the numbers can be trusted: guards and warnings, what is unfinished, where it ran."""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis import guards
from analysis.page import html_parts as parts
from analysis.page import run_facts as facts
from analysis.page.material import Material
from lynx_exp.store.read import CellRecord
from lynx_exp.wording import counted


def checks(material: Material) -> str:
    rows = _flagged(material)
    head = "<h3>Responses outside vanilla's band</h3>" if rows else ""
    bands = f"{100 * guards.TOKENS_BAND:.0f} % of vanilla's tokens, {100 * guards.LENGTH_STOP_BAND:.0f} points cut off"
    tail = f'<p class="legend">In brackets: the difference to vanilla. The band: {bands}.</p>' if rows else ""
    lines = _warnings(material)
    warned = f"<h3>Warnings</h3>{parts.notes(lines, kind='warning')}" if lines else ""
    return head + parts.table(rows) + tail + warned or "<p>Nothing: no guard is off, and there is no warning.</p>"


def _flagged(material: Material) -> list[dict[str, object]]:
    return [
        {
            "policy": row["series"],
            "subtask": row["subtask"],
            "batch size": row["batch_size"],
            "responses are": row["guard"],
            "tokens a response": f"{row['new_tokens']:.1f} ({row['new_tokens_difference']:+.1f})",
            "cut off": f"{100 * row['length_stop_share']:.0f} % ({100 * row['length_stop_share_difference']:+.0f})",
        }
        for row in material.study.rows.to_dict("records")
        if guards.is_flagged(row["guard"])
    ]


def _warnings(material: Material) -> list[str]:
    rows = material.study.rows
    lonely = rows[~rows["paired"].astype(bool)].groupby(["series", "batch_size"], sort=False)["subtask"]
    single = int(((rows["lanes"] < 2) & (rows["lanes"] > 0)).sum())
    doubts: dict[str, list[str]] = {}
    for cell, why in facts.timing_doubts(material.done):
        doubts.setdefault(why, []).append(cell.path.name)
    return [
        *material.study.warnings,
        *(f"invalid: {cell.path.name}: {reason}" for cell, reason in facts.invalid(material.done)),
        *(f"no vanilla partner: {name}, batch size {batch}, {', '.join(of)}" for (name, batch), of in lonely),
        *material.warnings,
        *([f"rows from a single lane, which gives no interval: {single}"] if single else []),
        *(f"latency: {why}: {counted(len(cells), 'cell')}: {_few(cells)}" for why, cells in doubts.items()),
        *(f"{cell.path.name}: {note}" for cell in material.done for note in cell.status.get("notes", ())),
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def unfinished(material: Material) -> str:
    rows = facts.unfinished(material.all_cells)
    if not rows:
        return ""
    lead = "<p>Left out of every number above. The command that ran them goes on where they stopped.</p>"
    return lead + parts.table(rows, numbers=("batch size", "attempt"))


def provenance(material: Material) -> str:
    fields = facts.environments(material.done)
    same = [(name, list(counts)) for name, counts in fields.items() if len(counts) == 1]
    differing = [
        {"field": name, "values (cells)": "; ".join(f"{value} ({count})" for value, count in counts.most_common())}
        for name, counts in fields.items()
        if len(counts) > 1
    ]
    head = "<h3>What differs between cells</h3>" if differing else ""
    commands = dict.fromkeys(" ".join(cell.provenance.get("command") or ()) for cell in material.done)
    models = dict.fromkeys(_weights(cell) for cell in material.done)
    asked = parts.definitions(
        (
            ("command", [command for command in commands if command]),
            ("weights", [model for model in models if model]),
        )
    )
    files = [
        {"cell": cell.path.name, "id": cell.info["cell_id"][:16], "attempt": cell.status.get("attempt", "-")}
        for cell in material.done
    ]
    return (
        head
        + parts.table(differing)
        + asked
        + parts.folded("Environment of all cells", parts.definitions(same))
        + parts.folded(
            "The cell" if len(files) == 1 else f"The {len(files)} cells", parts.table(files, numbers=("attempt",))
        )
    )


def _weights(cell: CellRecord) -> str:
    model = cell.provenance.get("model") or {}
    digest = f" sha256 {model['digest'][:16]}" if model.get("digest") else ""
    return re.sub(r"\s+", " ", f"{model.get('id', '')}{digest} {model.get('experts_implementation') or ''}").strip()
