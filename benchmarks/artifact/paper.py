"""Computes the numbers in the sentences of docs/results/paper.md from the CSV file of each figure."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

MILD, STRONG = "lynx(alpha=3, beta=2)", "lynx(alpha=1, beta=2)"
Figure = Callable[[str], pd.DataFrame]


def quantity(figure: Figure, name: str) -> list[float]:
    """The numbers of one sentence, in its order, from the figures that it needs; ValueError for no such name."""
    if name not in QUANTITIES:
        raise ValueError(f"{name}: known are {', '.join(QUANTITIES)}")
    return QUANTITIES[name](figure)


def _active(figure: Figure) -> list[float]:
    """Vanilla's at the smallest and at the largest batch."""
    found = figure("active_vs_batch")
    vanilla = found[found["policy"] == "vanilla"].sort_values("batch_size")["active_experts"]
    return [vanilla.iloc[0], vanilla.iloc[-1]]


def _lines(figure: Figure) -> list[float]:
    """Of decode R² and ms an expert at batch 4 and 16, R² of a prefill at 4."""
    found = figure("fig2").drop_duplicates(["batch_size", "phase"]).set_index(["batch_size", "phase"])
    decode = found.xs("decode", level="phase").loc[[4, 16]]
    return [*decode["r_squared"], *decode["slope"], found.loc[(4, "prefill"), "r_squared"]]


def _uneven(figure: Figure) -> list[float]:
    """Spread of a single step over that of its task: least and most."""
    spread = (
        figure("fig3").drop_duplicates(["subtask", "steps"]).pivot(index="subtask", columns="steps", values="spread")
    )
    return _ends(spread["one"] / spread["all"])


def _phases(figure: Figure) -> list[float]:
    """Points lost where 20 % of the assignments changed: least and most in prefill, in decode."""
    found = figure("fig4")
    fifth = found[found["share"].between(15, 25)]
    return [end for phase in ("prefill", "decode") for end in _ends(-fifth[fifth["phases"] == phase]["difference"])]


def _confidence(figure: Figure) -> list[float]:
    """Rank correlations: least and most of those that are not the lowest; how many; the lowest."""
    found = figure("confidence")["correlation"].sort_values()
    return [*_ends(found.iloc[1:]), float(len(found)), found.iloc[0]]


def _denied(figure: Figure) -> list[float]:
    """Points lost without rank 0, least and most; without rank 1, most."""
    lost = figure("fig7").assign(lost=lambda rows: -rows["difference"]).groupby("rank")["lost"]
    return [*_ends(lost.get_group(0)), float(lost.get_group(1).max())]


def _first_rank(figure: Figure) -> list[float]:
    found = figure("fig8")
    return _ends(-found[found["ranks"] == 1]["difference"])


def _speedups(figure: Figure) -> list[float]:
    """Both settings of lynx at batch 1, least and most; the stronger one by task at 16, and at 64 in the same order."""
    found = figure("fig17").set_index(["batch_size", "series"])["speedup"]
    return [*_ends(found.loc[1].loc[[MILD, STRONG]]), *found.loc[(16, STRONG)], *found.loc[(64, STRONG)]]


def _sections(figure: Figure) -> list[float]:
    """Percent of a step: the policy, least and most; vanilla's experts at the short and at the long context."""
    found = figure("fig18")
    step = found[[f"{part}_ms" for part in ("attention", "router", "policy", "experts", "rest")]].sum(axis=1)
    share = 100 * found[["policy_ms", "experts_ms"]].div(step, axis=0)
    vanilla = found["policy"] == "vanilla"
    by_context = share[vanilla].assign(context=found["context"]).sort_values("context")["experts_ms"]
    return [*_ends(share.loc[~vanilla, "policy_ms"]), *by_context]


def _table(figure: Figure) -> list[float]:
    """The stronger setting on humaneval and wmt16, points; speed-ups of both settings, least and most."""
    found = figure("table2_b16").set_index(["series", "subtask"])
    points = found["difference"].loc[STRONG]
    ends = [end for series in (MILD, STRONG) for end in _ends(found["speedup"].loc[series])]
    return [points["mini_humaneval"], points["mini_wmt16"], *ends]


def _ends(values: pd.Series) -> list[float]:
    return [float(values.min()), float(values.max())]


QUANTITIES: dict[str, Callable[[Figure], list[float]]] = {
    "figure 1c": _active,
    "figure 2": _lines,
    "figure 3": _uneven,
    "figure 4": _phases,
    "figure 6": _confidence,
    "figure 7": _denied,
    "figure 8": _first_rank,
    "figure 17": _speedups,
    "figure 18": _sections,
    "table 2": _table,
}
"""What sentences name."""
