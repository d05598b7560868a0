"""How policies look: colour and marker tell the policy, the fill its parameters, a ring what is to be looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.typing import FillStyleType

from analysis import guards
from analysis.figures.style import PALETTE, RC, Handle, LineStyle, width_in
from lynx_exp.config import policy_declaration

_LABEL_LETTERS = 54
"""Letters of a legend line that fit beside its markers, in a column of 3.25 inches."""

_OTHER_MARKERS = ("p", "h", "<", ">", "d", "8")
_FREE_MARKERS = ("D", "p", "h", "d", "<", ">", "v", "^", "P", "H", "8", "+", "1", "2", "3", "4")
"""Those that are told apart best come first; the last ones are no policy's own."""
_SIZES = {"*": 5.5, "X": 7.0}
"""Vanilla's star fits on the control's cross: the two nearly coincide, and both must be seen."""
_FILLS: tuple[FillStyleType, ...] = ("full", "none", "left", "right", "top", "bottom")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one policy setting is drawn: colour and marker tell the policy, the fill its parameters."""

    color: str
    marker: str
    fill: FillStyleType = "full"
    line: str = "-"

    def line_kwargs(self) -> LineStyle:
        """Arguments of `Axes.plot` for a line with markers."""
        return self.marker_kwargs() | {"linestyle": self.line}

    def marker_kwargs(self) -> LineStyle:
        """Arguments of `Axes.plot` for markers without a line; what is not filled is white, so bars end at the rim."""
        style: LineStyle = {
            "color": self.color,
            "marker": self.marker,
            "markersize": _SIZES.get(self.marker, RC["lines.markersize"]),
            "linestyle": "none",
            "fillstyle": "full" if self.fill == "none" else self.fill,
            "markerfacecoloralt": "white",
        }
        if self.fill == "none":
            style["markerfacecolor"] = "white"
        return style

    def faint(self) -> Look:
        """The same look, pale but opaque."""
        red, green, blue = to_rgb(self.color)
        return replace(self, color=to_hex((0.4 * red + 0.6, 0.4 * green + 0.6, 0.4 * blue + 0.6)))


def looks(frame: pd.DataFrame) -> dict[str, Look]:
    """One look per `series`, in the order of the frame; needs columns `series` and `policy`."""
    found: dict[str, Look] = {}
    others = sorted(name for name in set(frame["policy"]) if policy_declaration(name).color is None)
    seen: dict[str, int] = {}
    for name, policy in frame[["series", "policy"]].drop_duplicates().itertuples(index=False):
        index = others.index(policy) if policy in others else 0
        default = (PALETTE[index % len(PALETTE)], _OTHER_MARKERS[index % len(_OTHER_MARKERS)])
        declared = policy_declaration(policy)
        color, marker = declared.color or default[0], declared.marker or default[1]
        found[name] = Look(color=color, marker=marker, fill=_FILLS[seen.get(policy, 0) % len(_FILLS)])
        seen[policy] = seen.get(policy, 0) + 1
    return _apart(found, frame, others)


def _apart(found: dict[str, Look], frame: pd.DataFrame, others: Sequence[str]) -> dict[str, Look]:
    """Policies without a colour of their own (`others`) get those that no other policy of the frame has."""
    policy_of = dict(frame[["series", "policy"]].itertuples(index=False))
    used = {look.color for series, look in found.items() if policy_of[series] not in others}
    free = [color for color in (*PALETTE, *_MORE_COLORS) if color not in used]
    colors = {policy: free[at % len(free)] for at, policy in enumerate(others)}
    return {series: replace(look, color=colors.get(policy_of[series], look.color)) for series, look in found.items()}


_MORE_COLORS = ("#7b4ab5", "#8a5a2b", "#a50f3c", "#4d7a1f", "#2f7f86", "#b8860b")
"""For policies beyond those that have a colour."""


def markers(frame: pd.DataFrame) -> dict[str, str]:
    """One marker a policy, none twice: for where colour tells something else. Its own, unless it yields that, or
    declares none, and another has it."""
    look, first = looks(frame), frame.drop_duplicates("policy")
    own = {policy: look[series].marker for series, policy in first[["series", "policy"]].itertuples(index=False)}
    order = sorted(own, key=_yields)
    found: dict[str, str] = {}
    for policy in order:
        taken = set(found.values())
        free = (marker for marker in (own[policy], *_FREE_MARKERS) if marker not in taken)
        found[policy] = next(free, own[policy])
    return found


def _yields(policy: str) -> tuple[bool, bool, str]:
    declared = policy_declaration(policy)
    return declared.marker is None, declared.yields_marker, policy


_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def distinct(names: Sequence[str]) -> dict[str, Look]:
    """A colour, marker and line style each, for what is no policy: tasks, phases, layers."""
    return {
        name: Look(color=PALETTE[at % len(PALETTE)], marker=_MARKERS[at % len(_MARKERS)], line=_LINES[at % len(_LINES)])
        for at, name in enumerate(names)
    }


def family_entries(frame: pd.DataFrame, look: dict[str, Look]) -> tuple[list[Handle], list[str]]:
    """Legend handles and labels, one line per policy: its markers, then its parameter values in the same order."""
    handles: list[Handle] = []
    labels = []
    for policy, part in frame.drop_duplicates("series").groupby("policy", sort=False):
        shown = part["series"] if len(part) <= len(_FILLS) else part["series"].iloc[:1]
        handles.append(tuple(Line2D([], [], **look[name].marker_kwargs()) for name in shown))
        labels.append(part["series"].iloc[0] if len(part) == 1 else _family_label(str(policy), part))
    return handles, labels


def _family_label(policy: str, part: pd.DataFrame) -> str:
    many = f"{policy}, {len(part)} settings (see the CSV)"
    if len(part) > len(_FILLS):
        return many
    fields = zip(part["policy_params"], part["phases"], strict=True)
    settings = [json.loads(params) | {"phases": phases} for params, phases in fields]
    names = [name for name in settings[0] if len({str(setting.get(name)) for setting in settings}) > 1]
    values = [", ".join(_short(setting.get(name)) for name in names) for setting in settings]
    if len(names) == 1:
        label = f"{policy}({names[0]} = {', '.join(values)})"
    else:
        label = f"{policy}, ({', '.join(names)}) = " + ", ".join(f"({value})" for value in values)
    return label if len(label) <= _LABEL_LETTERS * width_in() / 3.25 else many


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def error_bars(axes: Axes, points: pd.DataFrame, colors: Sequence[str]) -> None:
    """Thin bars of the 95 % intervals of `x` and `y`, one colour a point; a missing interval draws nothing."""
    for along, across, lines in (("x", "y", axes.hlines), ("y", "x", axes.vlines)):
        known = points[f"{along}_low"].notna().to_numpy()
        if known.any():
            bars = points[known]
            shown = [color for color, keep in zip(colors, known, strict=True) if keep]
            lines(bars[across], bars[f"{along}_low"], bars[f"{along}_high"], colors=shown, linewidth=0.7, zorder=2)


UNSURE = "pale: time not final (~)"
"""In the legend of a figure of times that has such a point."""


def unsure_entry(points: pd.DataFrame) -> tuple[list[Handle], list[str]]:
    """The legend's handle and label of pale points; none if every time is final."""
    if points["timing_final"].astype(bool).all():
        return [], []
    return [Line2D([], [], **Look(color="#444444", marker="o").faint().marker_kwargs())], [UNSURE]


_RING: LineStyle = {
    "marker": "o",
    "linestyle": "none",
    "color": "#C00000",
    "markerfacecolor": "none",
    "markeredgewidth": 0.8,
}
_RING_SIZE = 8.5


def ring(axes: Axes, points: pd.DataFrame, x: str, y: str) -> None:
    """A ring around each flagged point, above the points; needs a column `guard`."""
    flagged = points[points["guard"].map(guards.is_flagged).astype(bool)]  # of no point the map has no type
    axes.plot(flagged[x], flagged[y], **_RING, markersize=_RING_SIZE, zorder=7)


def ring_entry(points: pd.DataFrame) -> tuple[list[Handle], list[str]]:
    """The legend's handle and label of the rings; none if no point is flagged."""
    if not points["guard"].map(guards.is_flagged).any():
        return [], []
    return [Line2D([], [], **_RING | {"markersize": 7})], ["responses longer or shorter than vanilla's"]
