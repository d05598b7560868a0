"""Two sweeps, or two cells, side by side."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import WHERE
from lynx_exp.results.selected_cells import finished
from lynx_exp.wording import counted

if TYPE_CHECKING:
    from analysis.between import CellComparison, MetricChange
    from analysis.statistics import Estimate
    from lynx_exp.results.matching import Matched, Pair
    from lynx_exp.store.read import CellRecord

HELP = "compare two sweeps, or two cells: what differs in code and machine, then in every number"
DESCRIPTION = """\
Pairs the finished cells of A and B that ask the same (model, task, policy and parameters, phases, batch size,
seed ...). Says first in what code, weights, documents and environment the two sides differ; then, for each pair
that is not equal, metrics with the difference of the same documents (95 % interval, clustered by lane),
responses that are others, and active experts; the time a token of these, and of pairs whose times differ by
more than their intervals; then cells that only one side has.

Exit codes: 0 equal in science (whatever the times), 1 not, 2 bad input."""

SAID = ("code", "model.digest")
"""Of what can change a number, what is told in words of its own."""
CONTEXT = 24
"""Characters before the first that differs, in an example."""
SHOWN = 72
"""Characters of an example."""


def add(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("before", type=Path, metavar="A", help=WHERE)
    verb.add_argument("after", type=Path, metavar="B", help="the same")


def run(args: argparse.Namespace) -> int:
    from lynx_exp.results.matching import match

    before, after = finished(args.before), finished(args.after)
    matched = match(before.cells, after.cells)
    if not matched.pairs:
        raise ValueError(f"{args.before} and {args.after}: no cell of one asks what a cell of the other does")
    for line in _around(matched.pairs):
        print(line)
    differing, ratios = 0, []
    for pair in matched.pairs:
        found = _between(pair)
        differing += not found.is_equal
        if found.step_ms[0] is not None and found.step_ms[1] is not None:
            ratios.append(found.step_ms[1].value / found.step_ms[0].value)
        for line in _pair(pair, found):
            print(line, flush=True)
    for cells, side in ((matched.only_before, args.before), (matched.only_after, args.after)):
        for cell in cells:
            print(f"only in {side}: {name_of(cell)} ({cell.path.name})")
    print(_closing(matched, differing, args))
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"time a token: {mean:.3g} times before, geometric mean of {counted(len(ratios), 'pair')}")
    return (
        FAILED if before.set_aside or after.set_aside or differing or matched.only_before or matched.only_after else 0
    )


def _between(pair: Pair) -> CellComparison:
    from analysis.between import compare_cells

    try:
        return compare_cells(pair.before, pair.after)
    except (OSError, ValueError, KeyError, TypeError) as error:
        where = f"{pair.before.path} or {pair.after.path}"
        raise ValueError(f"{where}: damaged ({error}); lynx-results validate says more") from error


def name_of(cell: CellRecord) -> str:
    info = cell.info
    phases = "" if info.get("phases") in ("decode", "none", None) else f" [{info['phases']}]"
    mixing = f" {info['mixing']}" if info.get("mixing") else ""
    return f"{info['task']}{mixing} {info['policy_label']}{phases} batch {info['batch_size']} seed {info.get('seed')}"


def _around(pairs: Sequence[Pair]) -> Iterator[str]:
    """Differences of the two sides that are not in what was asked, each once, with the number of pairs that have it."""
    found: dict[tuple[str, str, str], int] = {}
    for pair in pairs:
        for change in _surroundings(pair):
            found[change] = found.get(change, 0) + 1
    for (field, before, after), count in found.items():
        of = "" if count == len(pairs) else f" (in {count} of {counted(len(pairs), 'pair')})"
        yield f"{field}: {before} -> {after}{of}"


def _surroundings(pair: Pair) -> Iterator[tuple[str, str, str]]:
    from lynx_exp.store.environment import differences

    old, new = pair.before.provenance, pair.after.provenance
    for field, *path in (
        ("code", "code_sha256"),
        ("git revision", "git", "revision"),
        ("git changes", "git", "diff_sha256"),
        ("weights", "model", "digest"),
    ):
        before, after = _at(old, path), _at(new, path)
        if before != after:
            yield field, _short(before), _short(after)
    for task in sorted({*(old.get("data_sha256") or {}), *(new.get("data_sha256") or {})}):
        before, after = _at(old, ["data_sha256", task]), _at(new, ["data_sha256", task])
        if before != after:
            yield f"documents and prompts of {task}", _short(before), _short(after)
    for field, values in differences({"before": old, "after": new}).items():
        if field in SAID:
            continue
        sides = {name: value for value, names in values.items() for name in names}
        yield field, sides["before"], sides["after"]
    for field, (was, now) in pair.changed_fields.items():
        yield f"asked: {field}", _or_dash(was), _or_dash(now)


def _at(value: object, path: Sequence[str]) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _short(value: object) -> str:
    return _or_dash(value)[:12]


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _pair(pair: Pair, found: CellComparison) -> Iterator[str]:
    """Nothing of what is equal, unless its time differs by more than chance."""
    if found.is_equal and not _disjoint(*found.step_ms):
        return
    yield f"{name_of(pair.before)} ({pair.before.path.name} -> {pair.after.path.name})"
    if not found.is_equal:
        yield from (f"  {line}" for line in _science(found))
    if all(found.step_ms):
        yield f"  decode step, ms: {_estimate(found.step_ms[0], '.3g')} -> {_estimate(found.step_ms[1], '.3g')}"


def _disjoint(before: Estimate | None, after: Estimate | None) -> bool:
    """Whether the intervals do not meet."""
    ends = [end for side in (before, after) if side is not None for end in (side.low, side.high)]
    if len(ends) < 4 or None in ends:
        return False
    low, high, other_low, other_high = ends
    return other_low > high or low > other_high  # type: ignore[operator]


def _science(found: CellComparison) -> Iterator[str]:
    if not found.same_plan:
        yield "plan: other requests share a lane"
    for metric in found.metrics:
        yield f"{metric.subtask} {metric.name}: {_metric(metric)}"
    yield from _responses(found)
    if not found.same_steps:
        before, after = (_number(value, ".2f") for value in found.active)
        yield f"active experts: {before} -> {after}, a lane {_estimate(found.active_difference, '+.2f')}"
    if found.kl[0] != found.kl[1]:
        yield f"KL from vanilla, nats a token: {_number(found.kl[0], '.3g')} -> {_number(found.kl[1], '.3g')}"


def _metric(metric: MetricChange) -> str:
    form = ".2f" if metric.unit in ("%", "BLEU") else ".4g"
    unit = {"own": ""}.get(metric.unit, f" {metric.unit}")
    values = f"{_number(metric.before, form)} -> {_number(metric.after, form)}{unit}"
    if metric.difference is None:
        return values
    before, after = metric.documents
    both = f"on the {counted(metric.shared, 'document')} of both (of {before} and {after}) "
    where = both if metric.shared < max(before, after) else ""  # else the values are of the same ones
    return f"{values}, {where}{_estimate(metric.difference, f'+{form}')}"


def _responses(found: CellComparison) -> Iterator[str]:
    changes = found.responses
    if changes.one_sided:
        yield f"responses: {changes.one_sided} to requests that only one side has"
    if changes.other_prompts:
        yield f"prompts: {changes.other_prompts} of {changes.compared} are others"
    if changes.changed and changes.example is not None:
        most = f", log-likelihoods by up to {changes.logprob:.3g} nats" if changes.logprob else ""
        yield f"responses: {changes.changed} of {changes.compared} differ{most}; the first, {changes.example[0]}:"
        yield from (f"  {side} {text}" for side, text in zip("-+", _excerpts(*changes.example[1:]), strict=True))


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Both from a little before where they part."""
    parting = (at for at, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    start = max(0, next(parting, min(len(before), len(after))) - CONTEXT)
    shown = []
    for text in (before, after):
        cut = "..." if start + SHOWN < len(text) else ""
        shown.append(("..." if start else "") + text[start : start + SHOWN] + cut)
    return shown[0], shown[1]


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _estimate(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return "none"
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, form)
    return f"{format(estimate.value, form)} [{format(estimate.low, form)}, {format(estimate.high, form)}]"


def _closing(matched: Matched, differing: int, args: argparse.Namespace) -> str:
    equal = len(matched.pairs) - differing
    parts = [f"{counted(len(matched.pairs), 'pair')}: {equal} equal in science, {differing} not"]
    for cells, side in ((matched.only_before, args.before), (matched.only_after, args.after)):
        if cells:
            parts.append(f"{len(cells)} only in {side}")
    return "; ".join(parts)
