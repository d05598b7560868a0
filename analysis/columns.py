"""The columns of the results table: what each shows of a row, how wide it is, and when it is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import verdicts
from analysis.activity import FULL
from analysis.drift import SOLVED, TIME
from analysis.frame_rows import Row
from analysis.layout import WIDTH, count, interval, label, number


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    heading: str
    width: int
    cell: Callable[[Row], Text | str]
    right: bool = True
    needs: tuple[str, ...] = ()
    """The column is left out of a table in which none of these has a number."""
    hidden_from: float = math.inf
    """Likewise where all of those numbers are at least this."""


def shown(columns: Sequence[Column], rows: pd.DataFrame) -> list[Column]:
    """Those that have something to show."""
    return [
        column
        for column in columns
        if not column.needs
        or any(name in rows and (rows[name].astype(float) < column.hidden_from).any() for name in column.needs)
    ]


def rich_table(rows: pd.DataFrame, columns: Sequence[Column], heading: Text) -> Table:
    """`policy` first, in the room that the others leave."""
    others = shown(columns, rows)
    table = empty_table(others, heading)
    for row in rows.to_dict("records"):
        table.add_row(*cells(row, others))
    return table


def print_table(rows: pd.DataFrame, columns: Sequence[Column], heading: Text, console: Console) -> None:
    """What the console prints of `rich_table`. Where it shows no styles, in a tenth of the time: a study has thousands
    of rows, and every width is known."""
    if not isinstance(console, Console) or console.is_terminal or console.record or console.width < WIDTH:
        console.print(rich_table(rows, columns, heading))
        return
    others = shown(columns, rows)
    console.print(empty_table(others, heading))
    lines = [line for row in rows.to_dict("records") for line in _lines(cells(row, others), others, console)]
    if lines:
        console.out("\n".join(lines), highlight=False)


def _lines(texts: Sequence[Text | str], others: Sequence[Column], console: Console) -> list[str]:
    """Of one row: one, unless a text is wider than its column."""
    plain = [str(text) for text in texts]
    widths = [policy_width(others), *(column.width for column in others)]
    if any(cell_len(text) > width or "\n" in text for text, width in zip(plain, widths, strict=True)):
        table = empty_table(others, header=False)
        table.add_row(*texts)
        with console.capture() as captured:
            console.print(table)
        return captured.get().removesuffix("\n").split("\n")
    first, *rest = (text + " " * (width - cell_len(text)) for text, width in zip(plain, widths, strict=True))
    aligned = [
        " " * (len(text) - len(text.rstrip(" "))) + text.rstrip(" ") if column.right else text
        for text, column in zip(rest, others, strict=True)
    ]
    return [" ".join([first, *aligned])]


def empty_table(others: Sequence[Column], heading: Text | None = None, *, header: bool = True) -> Table:
    table = Table(
        title=heading,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        width=WIDTH,
        show_header=header,
    )
    table.add_column("policy", width=policy_width(others), overflow="fold")
    for column in others:
        table.add_column(column.heading, width=column.width, justify="right" if column.right else "left")
    return table


def policy_width(others: Sequence[Column]) -> int:
    return WIDTH - sum(column.width + 1 for column in others)


def cells(row: Row, others: Sequence[Column]) -> list[Text | str]:
    return [policy(row), *(column.cell(row) for column in others)]


def policy(row: Row) -> Text:
    text = label(row)
    if row.get("subtasks", 0) < row.get("all_subtasks", 0):
        text.append(f" ({row['subtasks']} of {row['all_subtasks']} subtasks)", style="yellow")
    return text


def is_final(row: Row) -> bool:
    """Whether the row's speed-up reached its precision on an idle machine (True where nothing was timed)."""
    return bool(row.get("timing_final", True))


def _difference(row: Row) -> Text | str:
    if row["policy"] == "vanilla":
        return "-"
    return interval(row, "difference", "{:+.1f}") if row["paired"] else "no vanilla"


_WORDS = {
    verdicts.WORSE: ("worse", "red"),
    verdicts.BETTER: ("better", "green"),
    verdicts.PERHAPS_WORSE: ("worse?", "red"),
    verdicts.PERHAPS_BETTER: ("better?", "green"),
    verdicts.NONE: ("-", ""),
}


def _verdict(row: Row) -> Text:
    if row["verdict"] == verdicts.WITHIN:
        return Text(f"±{row['margin']:g}", style="green")
    if row["verdict"] == verdicts.FEW_LANES:
        return Text(f"≥{count(row['lanes_needed'])}L", style="yellow")
    if row["verdict"] == verdicts.OPEN:
        return Text(f"≥{count(row['documents_needed'])}", style="yellow")
    word, style = _WORDS[row["verdict"]]
    return Text(word, style=style)


def _step(row: Row) -> str:
    own, vanilla = row["step_ms"], row.get("vanilla_step_ms", math.nan)
    if row["policy"] == "vanilla" or math.isnan(vanilla):
        return number(own, "{:#.3g}")
    return f"{number(own, '{:#.3g}')}/{number(vanilla, '{:#.3g}')}"


def _energy(row: Row) -> str:
    own, vanilla = (_digits(1000 * float(row[name] or math.nan)) for name in _JOULES)
    return own if row["policy"] == "vanilla" else f"{own}/{vanilla}"


_JOULES = ("j_per_token", "vanilla_j_per_token")


def _speedup(row: Row) -> Text | str:
    if row["policy"] == "vanilla" and not math.isnan(row["step_ms"]):
        return "1"
    text = interval(row, "speedup", "{:.2f}")
    return text if is_final(row) else Text.assemble(text, ("~", "bold yellow"))


def _run_speedup(row: Row) -> Text | str:
    text = number(row["run_speedup"], "{:.2f}")
    return Text.assemble(text, ("≠", "bold yellow")) if row.get("speedup_disagrees") is True else text


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: number(100 * row[name], "{:.0f}")


def _plain(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: number(row[name], form)


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return number(value, "{:.0f}" if abs(value) > 99.9 else "{:#.3g}")


def _three(name: str) -> Callable[[Row], str]:
    return lambda row: _digits(row[name])


RESULTS = (
    Column(heading="score", width=5, cell=_plain("score", "{:.1f}")),
    Column(heading="difference", width=19, cell=_difference, right=False),
    Column(heading="test", width=6, cell=_verdict),
    Column(heading="step ms\n/vanilla", width=9, cell=_step, needs=("step_ms",)),
    Column(heading="speed-up", width=17, cell=_speedup, right=False, needs=("speedup",)),
    Column(heading="run", width=5, cell=_run_speedup, needs=("run_speedup",)),
    Column(heading="act.\nexp.", width=4, cell=_plain("active_experts", "{:#.3g}"), needs=("active_experts",)),
    Column(heading="full\n%", width=4, cell=_share("full_steps"), needs=("full_steps",), hidden_from=FULL),
)
"""Of `compare.results` and `macro.summary`, with `verdicts.judged`."""

FIDELITY = (
    Column(heading="act.\nexp.", width=4, cell=_plain("active_experts", "{:.2f}")),
    Column(heading="difference", width=19, cell=lambda row: interval(row, "difference", "{:+.1f}"), right=False),
    Column(heading="KL, mnat/token", width=19, cell=lambda row: interval(row, "kl", "{:.3g}"), right=False),
    Column(heading="agree\n%", width=6, cell=_plain("agreement", "{:.2f}")),
    Column(heading="select\nµs", width=6, cell=_plain("selection_us", "{:.0f}")),
)
"""Distance from vanilla."""

DRIFT = (
    Column(heading="thought", width=7, cell=_plain("thought_tokens", "{:.0f}")),
    Column(
        heading="more than\nvanilla",
        width=17,
        cell=lambda row: interval(row, "thought_tokens_difference", "{:+.0f}"),
        right=False,
    ),
    Column(heading="cut\n%", width=4, cell=_share("thought_cut_share")),
    Column(heading="answer", width=6, cell=_plain("answer_tokens", "{:.0f}")),
    Column(
        heading="more than\nvanilla",
        width=15,
        cell=lambda row: interval(row, "answer_tokens_difference", "{:+.0f}"),
        right=False,
    ),
    Column(heading="tokens\na solved", width=8, cell=_plain(SOLVED, "{:.0f}"), needs=(SOLVED,)),
    Column(heading="s a\nsolved", width=6, cell=_three(TIME), needs=(TIME,)),
)
"""Length drift: thoughts, answers, and what a solved document costs."""

REPEATS = (
    Column(heading="n", width=4, cell=_plain("document_repeats", "{:.0f}")),
    Column(heading="avg@n", width=18, cell=lambda row: interval(row, "score", "{:.1f}"), right=False),
    Column(heading="difference", width=19, cell=_difference, right=False),
    Column(
        heading="pass@n",
        width=18,
        cell=lambda row: interval(row, "pass_at_k", "{:.1f}"),
        right=False,
        needs=("pass_at_k",),
    ),
    Column(
        heading="difference",
        width=19,
        cell=lambda row: "-" if row["policy"] == "vanilla" else interval(row, "pass_at_k_difference", "{:+.1f}"),
        right=False,
        needs=("pass_at_k",),
    ),
)
"""Several responses to a document, each scored."""

HARDWARE = (
    Column(heading="step ms\n/vanilla", width=9, cell=_step, needs=("step_ms",)),
    Column(heading="GB a\nstep", width=6, cell=_three("step_gb"), needs=("step_gb",)),
    Column(heading="GB/s", width=5, cell=_three("gb_s"), needs=("gb_s",)),
    Column(heading="% of\ncopy", width=5, cell=_share("s_mbu"), needs=("s_mbu",)),
    Column(heading="µs an\nexpert", width=6, cell=_three("us_per_expert"), needs=("us_per_expert",)),
    Column(heading="fixed\nms", width=6, cell=_three("fixed_ms"), needs=("fixed_ms",)),
    Column(heading="mJ a token\n/vanilla", width=11, cell=_energy, needs=("j_per_token",)),
)
"""What the hardware gave."""

MIXES = (
    Column(heading="lanes", width=8, cell=lambda row: str(row["mixing"]), right=False),
    Column(heading="number", width=6, cell=lambda row: str(row["lanes"])),
    Column(heading="tasks", width=5, cell=_plain("effective_tasks", "{:.2f}")),
    Column(heading="active experts", width=20, cell=lambda row: interval(row, "active_experts", "{:.2f}"), right=False),
    Column(heading="difference", width=19, cell=lambda row: interval(row, "difference", "{:+.2f}"), right=False),
)
"""Of `composition.summary`."""
