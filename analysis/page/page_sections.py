"""The page's sections, each a function of the same material that gives HTML; empty where there is nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pandas as pd

from analysis import composition, guards
from analysis import results_table as table
from analysis.conclusion import conclusions
from analysis.page import html_parts as parts
from analysis.page import run_facts as facts
from analysis.page import trust_sections as checks
from analysis.page.material import Material
from analysis.page.pictures import gallery
from analysis.page.rich_html import Block, HtmlConsole
from analysis.page.served import served
from analysis.page.text import escape
from analysis.recommendation import ALL, print_recommendations
from lynx_exp.wording import counted


def all_sections(material: Material) -> dict[str, str]:
    """HTML of each section that has something to say, by its id."""
    made = {}
    for name, (heading, make) in SECTIONS.items():
        inner = make(material)
        if inner:
            head = _head(material) if name == "overview" else f"<h2>{heading}</h2>"
            made[name] = f'<section id="{name}">{head}{inner}</section>'
    return made


def _head(material: Material) -> str:
    return f'<p class="kicker">batch-aware expert selection</p><h1>{escape(material.title)}</h1>'


def navigation(made: Iterable[str]) -> str:
    """Links to the sections of these ids."""
    return "".join(f'<a href="#{name}">{SECTIONS[name][0]}</a>' for name in made)


def _overview(material: Material) -> str:
    cells, done = material.study.records.cells, material.done
    tiles = [
        (f"{len(done)} of {len(material.all_cells)}", "cell done" if len(material.all_cells) == 1 else "cells done")
    ]
    tiles += [
        (str(cells["policy_label"].nunique()), "policy settings"),
        (str(material.study.rows["subtask"].nunique()), "subtasks"),
        (f"{material.study.rows.groupby('subtask')['documents'].max().sum():,}", "documents"),
        (f"{int(material.study.records.responses.shape[0]):,}", "requests"),
    ]
    shown = "".join(f"<div><b>{escape(number)}</b><span>{escape(what)}</span></div>" for number, what in tiles)
    period = facts.period(done)
    what = parts.definitions(
        (
            ("model", _models(cells)),
            ("on", facts.hardware(done)),
            ("with", facts.software(done)),
            ("tasks", [", ".join(dict.fromkeys(map(str, material.study.rows["subtask"])))]),
            ("batch sizes", [f"{_listed(cells['batch_size'])} ({_listed(cells['batching'])} batching)"]),
            ("policies act in", [_listed(cells.loc[cells["policy"] != "vanilla", "phases"])]),
            ("batch plans", [f"seed {_listed(cells['seed'])}"]),
            (
                "generated code ran in",
                [f"{tier}: {counted(count, 'document', '{:,}')}" for tier, count in _sandboxes(material)],
            ),
            ("ran (UTC)", [f"{period[0]} to {period[1]}"] if period else []),
        )
    )
    said = "".join(f"<p>{escape(line)}</p>" for line in conclusions(material.study))
    headline = f'<div class="headline">{said}</div>' if said else ""
    return f'{headline}<div class="tiles">{shown}</div>{_alarms(material)}{what}'


def _models(cells: pd.DataFrame) -> list[str]:
    lines = []
    for row in cells.to_dict("records"):
        known = [f"{row[n]:.0f} {word}" for n, word in _SHAPE if not pd.isna(row[n])]
        lines.append(f"{row['model']} ({', '.join([*known, row['dtype'], row['device'], row['backend']])})")
    return list(dict.fromkeys(lines))


_SHAPE = (("num_experts", "experts"), ("top_k", "a token"), ("num_layers", "MoE layers"))


def _listed(values: pd.Series) -> str:
    return ", ".join(map(str, sorted(values.dropna().unique()))) or "-"


def _sandboxes(material: Material) -> list[tuple[str, int]]:
    ran = material.study.records.samples.dropna(subset=["verdict"])["cell_id"].unique()
    return facts.sandboxes([cell for cell in material.done if cell.info["cell_id"] in set(ran)]).most_common()


def _alarms(material: Material) -> str:
    """What must be seen before any number."""
    flagged = int(material.study.rows["guard"].map(guards.is_flagged).sum())
    lonely = int((~material.study.rows["paired"].astype(bool)).sum())
    alarms = [("unfinished" if line.startswith("missing") else "provenance", line) for line in material.study.warnings]
    invalid = len(facts.invalid(material.done))
    alarms += [("checks", f"findings that answers are invalid: {invalid}")] if invalid else []
    alarms += [("checks", f"rows with responses outside vanilla's band: {flagged}")] if flagged else []
    alarms += [("checks", f"rows without a vanilla partner, and so without difference: {lonely}")] if lonely else []
    links = "".join(f'<a href="#{at}">{escape(text)}</a>' for at, text in alarms)
    return f'<div class="alarms">{links}</div>' if links else ""


def _recommendation(material: Material) -> str:
    console = HtmlConsole()
    print_recommendations(replace(material.study, warnings=()), console)  # type: ignore[arg-type]  # only prints to it
    tables = [block for block in console.blocks if block.table]
    if not tables:
        return ""
    overall = [block for block in tables if block.plain_title.startswith(ALL)] or tables
    shown = "".join(_block(block, is_open=True) for block in overall)
    rest = "".join(_block(block, is_open=False) for block in tables if block not in overall)
    return shown + (parts.folded("By subtask", rest) if rest else "") + _legend(console.blocks)


def _legend(blocks: Sequence[Block]) -> str:
    return "".join(f'<p class="legend">{line}</p>' for block in blocks if not block.table for line in block.lines)


def _pareto(material: Material) -> str:
    if set(material.study.records.cells["policy"]) == {"vanilla"}:
        return ""
    return (
        '<p class="lead">Each point is a policy setting. Bars are 95 % intervals; the dotted line joins the points '
        "that no other beats in what is shown, the others are pale. ~: a time that is not final (precision not "
        "reached, or the machine busy), pale too, for it beats nobody. The green band: within the margin of vanilla. "
        "A ring: responses outside vanilla's band. Touch or click a point for its parameters and numbers.</p>"
        '<div id="chart"><noscript>The chart needs JavaScript; its numbers are in the tables.</noscript></div>'
    )


def _figures(material: Material) -> str:
    missing = parts.notes(material.undrawn)
    return gallery(material.pictures) + (parts.folded("Not drawn", missing) if missing else "")


def _served(material: Material) -> str:
    return served(material.study)


def _tables(material: Material) -> str:
    console = HtmlConsole()
    table.print_rows(material.study.rows, material.study.summary, console)  # type: ignore[arg-type]  # prints to it, no more
    table.print_mixes(composition.summary(material.study.lanes), console)  # type: ignore[arg-type]
    tables = [block for block in console.blocks if block.table]
    first = [block for block in tables if block.plain_title.startswith(("mean over", "distance", "what the hardware"))]
    rest = [block for block in tables if block not in first]
    is_open = not first and len(rest) <= 2
    shown = "".join(_block(block, is_open=True) for block in first)
    more = "".join(_block(block, is_open=is_open) for block in rest)
    unfold = '<p><button type="button" data-unfold="tables">open all tables</button></p>'
    return shown + more + unfold + _legend(console.blocks)


def _block(block: Block, *, is_open: bool) -> str:
    lines = "".join(f"<p>{line}</p>" for line in block.lines)
    return parts.folded(block.title, parts.scrolled(block.table) + lines, is_open=is_open)


def _samples(material: Material) -> str:
    missing = parts.notes(material.missing_prompts)
    note = parts.folded("Prompts that are shown as hashes only", missing) if missing else ""
    return (
        '<div id="samples"><noscript>The samples need JavaScript.</noscript></div>' + note
        if len(material.study.records.samples)
        else ""
    )


SECTIONS: dict[str, tuple[str, Callable[[Material], str]]] = {
    "overview": ("Overview", _overview),
    "recommendation": ("Recommendation", _recommendation),
    "pareto": ("Pareto", _pareto),
    "figures": ("Figures", _figures),
    "tables": ("Tables", _tables),
    "served": ("Serving", _served),
    "answers": ("Samples", _samples),
    "checks": ("Guards and warnings", checks.checks),
    "unfinished": ("Unfinished cells", checks.unfinished),
    "provenance": ("Provenance", checks.provenance),
}
"""In the order of the page: id, heading, content."""
