"""What the sections should reach on an H100 80 GB, what they reached when a card was first there, and the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.on_gpu.records import Record

Pick = Callable[[Sequence[Record]], float | None]
"""From a section's records to the number; None: it was not measured."""
POLICIES = ("xshare", "oea", "top_k", "coverage", "lynx_v1_latency")
"""That have goals for what they realise of the bytes model's speed-up."""
LAYERS = {"qwen3_30b_a3b": 48}
"""A goal in milliseconds is one of the whole model."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    what: str
    section: str
    pick: Pick
    least: bool
    """Whether more is better."""
    goal: float
    before: str = ""
    """What there was before, on an H100."""

    def row(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        """With `met`: None where it was not measured."""
        own = sections.get(self.section)
        value = None if own is None else self.pick(own["records"])
        met = None if value is None else (value >= self.goal if self.least else value <= self.goal)
        return {"what": self.what, "goal": self.goal, "least": self.least, "before": self.before} | {
            "value": value, "met": met, "state": "not asked for" if own is None else own["state"],
        }  # fmt: skip


def _of(records: Sequence[Record], case: str, **wanted: Any) -> list[Record]:
    return [r for r in records if r.get("case") == case and all(r.get(name) == value for name, value in wanted.items())]


def _step(batch: int, layers: int) -> Pick:
    def pick(records: Sequence[Record]) -> float | None:
        found = _of(records, "step", batch=batch, name="vanilla", layers=layers)
        return found[0]["step_ms"] if found else None

    return pick


def _least(batch: int, number: str, policies: Sequence[str], shares: Sequence[str] | None = None) -> Pick:
    """The smallest over those policies' settings."""

    def pick(records: Sequence[Record]) -> float | None:
        found = [r for r in _of(records, "step", batch=batch) if r["policy"] in policies]
        found = [r for r in found if shares is None or r["share"] in shares]
        return min((r[number] for r in found), default=None)

    return pick


def _layer(rows: Sequence[int], policies: Callable[[str], bool]) -> Pick:
    """The largest over policies and numbers of rows, in microseconds a layer."""

    def pick(records: Sequence[Record]) -> float | None:
        found = [r for n in rows for r in _of(records, "layer", rows=n, experts=128) if policies(r["policy"])]
        return max((r["us"] for r in found if r["us"] is not None), default=None)

    return pick


def _experts(shape: str, rows: int) -> Pick:
    def pick(records: Sequence[Record]) -> float | None:
        found = _of(records, "experts", shape=shape, rows=rows)
        return found[0]["floor_us"] / found[0]["few_rows_us"] if found else None

    return pick


def _stream(records: Sequence[Record]) -> float | None:
    found = [r for r in _of(records, "stream", layers=LAYERS["qwen3_30b_a3b"]) if r["name"] == "vanilla"]
    return found[0]["step_ms"] if found else None


def _stream_ratio(records: Sequence[Record]) -> float | None:
    found = _of(records, "stream")
    vanilla = [r["step_ms"] for r in found if r["name"] == "vanilla"]
    others = [r["step_ms"] for r in found if r["name"] != "vanilla"]
    return max(others) / vanilla[0] if vanilla and others else None


def _coverage(policy: str) -> bool:
    return policy == "coverage"


def _others(policy: str) -> bool:
    return policy not in ("coverage", "vanilla", "router")


Q, M = "qwen3_30b_a3b", "mixtral_8x7b"
GOALS: Sequence[Goal] = (
    *(
        Goal(
            what=f"Qwen3-30B-A3B, 48 layers, vanilla, batch {batch}: ms a step",
            section=Q, pick=_step(batch, LAYERS[Q]), least=False, goal=goal, before=before,
        )
        for batch, goal, before in ((1, 4.5, "9.3"), (16, 15.0, "23.3"), (64, 22.5, "32.4"))
    ),
    *(
        Goal(
            what=f"xshare, oea, top_k, coverage, v1_latency, batch {batch}: realised, the least",
            section=Q, pick=_least(batch, "realised", POLICIES), least=True, goal=goal, before=before,
        )
        for batch, goal, before in ((1, 0.95, "-"), (16, 0.85, "0.36 to 0.86"), (64, 0.85, "0.25 to 0.92"))
    ),
    Goal(
        what="the same, batch 1: speed of vanilla's, the least",
        section=Q, pick=_least(1, "speedup", POLICIES), least=True, goal=0.98, before="0.62 to 0.93",
    ),
    *(
        Goal(
            what=f"no_drop, batch {batch}: speed of vanilla's",
            section=Q, pick=_least(batch, "speedup", ("no_drop",)), least=True, goal=0.985, before=before,
        )
        for batch, before in ((16, "0.96"), (64, "0.97"))
    ),
    Goal(
        what="Mixtral-8x7B, batch 16, half the experts: realised / ideal",
        section=M, pick=_least(16, "realised", ("lynx_v1_latency",), ("half",)), least=True, goal=0.95, before="0.77",
    ),
    *(
        Goal(
            what=f"experts of Qwen3, {rows} rows: share of the rate of a copy",
            section="experts", pick=_experts(Q, rows), least=True, goal=0.93, before=before,
        )
        for rows, before in ((16, "0.68"), (64, "0.70"), (256, "0.67"))
    ),
    Goal(
        what="selection, E 128, K 8, to 64 rows: us a layer, the most, without coverage",
        section="selection", pick=_layer((1, 16, 64), _others), least=False, goal=8.0, before="112",
    ),
    Goal(
        what="the same, 256 rows",
        section="selection", pick=_layer((256,), _others), least=False, goal=16.0, before="237",
    ),
    *(
        Goal(
            what=f"selection of coverage, {rows} rows: us a layer",
            section="selection", pick=_layer((rows,), _coverage), least=False, goal=goal, before=before,
        )
        for rows, goal, before in ((16, 20.0, "104"), (64, 30.0, "531"), (256, 40.0, "2673"))
    ),
    Goal(
        what="accuracy run, 256 rows, vanilla: ms a step",
        section=Q, pick=_stream, least=False, goal=30.0, before="55.5",
    ),
    Goal(
        what="the same, the slowest policy over vanilla",
        section=Q, pick=_stream_ratio, least=False, goal=1.02, before="1.9",  # no slower, but for noise
    ),
)  # fmt: skip


def table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a goal."""
    return [goal.row(results["sections"]) for goal in GOALS]


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """As people read it."""
    shown = [f"{'':<74} {'now':>7} {'goal':>9} {'first H100':>13}"]
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.3g}"
        unknown = "not measured" if row["state"] == "done" else row["state"]
        word = {True: "met", False: "MISSED", None: unknown}[row["met"]]
        goal = f"{'>=' if row['least'] else '<='} {row['goal']:g}"
        shown.append(f"{row['what']:<74} {value:>7} {goal:>9} {row['before']:>13}  {word}")
    return shown
