"""Rules on who shared a lane: the plan, the responses that it got, and the decode steps that these make."""

# B slots of a lane, L layers, E experts, K experts of a token

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lynx_exp.checks.content import Columns, Content
from lynx_exp.checks.findings import some

ENDINGS = ("eos", "stop", "length", "scored")
PASSING = 1e-6
"""A log-likelihood may exceed 0 by rounding."""

Ints = NDArray[np.int64]


def check_plan(content: Content) -> None:
    for stream, plan in content.plan.items():
        lanes, batch, continuous = plan["lanes"], plan["batch_size"], plan["batching"] == "continuous"
        most = batch * content.config["waves"] if continuous else batch
        if not all(lanes):
            content.add("plan", "plan.json", f"requests in every lane of {stream}", "an empty lane")
        longest = max(map(len, lanes), default=0)
        if longest > most:
            content.add("plan", "plan.json", f"lanes of at most {most} requests in {stream}", f"one of {longest}")
        asked = sorted(request for lane in lanes for request in lane)
        if asked != list(range(len(asked))):
            twice = [request for request, times in Counter(asked).items() if times > 1]
            found = f"{some(twice)} more than once" if twice else "others"
            content.add("plan", "plan.json", f"requests 0 to {len(asked) - 1} of {stream}, each once", found)
        whole = [lanes, batch] if continuous else lanes
        digest = hashlib.sha256(json.dumps(whole).encode()).hexdigest()
        if digest != plan["digest"]:
            content.add("plan", "plan.json", f"digest {digest[:12]} of {stream}", str(plan["digest"])[:12])


def rows_of(content: Content, table: Columns) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """(stream, which rows of responses or fidelity are its). A mix has one stream, its rows the names of its tasks."""
    streams = list(content.plan)
    for stream in streams:
        yield stream, np.ones(len(table["request"]), bool) if len(streams) == 1 else table["subtask"] == stream


def check_responses(content: Content) -> None:
    """Coverage, slots and what a response can be."""
    table = content.table("responses")
    if table is None:
        return
    if content.info.get("mixing") is None and (strange := sorted(set(table["subtask"]) - set(content.plan))):
        content.add("coverage", "responses.parquet", f"rows of {', '.join(content.plan)}", some(strange))
    for stream, own in rows_of(content, table):
        lanes = content.plan[stream]["lanes"]
        requests, in_lane = table["request"][own], table["lane"][own]
        if _covered(content, stream, lanes, requests, in_lane):
            _check_slots(content, stream, {name: column[own] for name, column in table.items()})
    _check_values(content, table)


def _covered(content: Content, stream: str, lanes: Sequence[Sequence[int]], requests: Ints, in_lane: Ints) -> bool:
    file = "responses.parquet"
    planned = {request: number for number, lane in enumerate(lanes) for request in lane}
    found, counts = np.unique(requests, return_counts=True)
    missing = sorted(set(planned) - set(found.tolist()))
    strange = sorted(set(found.tolist()) - set(planned))
    twice = found[counts > 1].tolist()
    for numbers, what in ((missing, "no response to"), (strange, "responses to"), (twice, "several responses to")):
        if numbers:
            content.add("coverage", file, f"one response to each of {stream}'s {len(planned)} requests",
                        f"{what} {some(numbers)}")  # fmt: skip
    if missing or strange or twice:
        return False
    wanted = np.array([planned[request] for request in requests.tolist()])
    astray = np.flatnonzero(wanted != in_lane)
    if len(astray):
        first = astray[0]
        content.add("coverage", file, f"request {requests[first]} of {stream} in lane {wanted[first]}",
                    f"lane {in_lane[first]}{_others(astray)}")  # fmt: skip
    return not len(astray)


def _check_slots(content: Content, stream: str, rows: Columns) -> None:
    at = {request: row for row, request in enumerate(rows["request"].tolist())}
    for number, lane in enumerate(content.plan[stream]["lanes"]):
        own = [at[request] for request in lane]
        wanted = [slot for _, slot in seats(rows["new_tokens"][own].tolist(), _slots(content, stream))]
        wrong = np.flatnonzero(rows["slot"][own] != np.array(wanted))
        if len(wrong):
            first = wrong[0]
            content.add("slots", "responses.parquet",
                        f"request {lane[first]} of {stream}, lane {number}, in slot {wanted[first]}",
                        f"slot {rows['slot'][own][first]}{_others(wrong)}")  # fmt: skip
            return


def _slots(content: Content, stream: str) -> int | None:
    plan = content.plan[stream]
    return plan["batch_size"] if plan["batching"] == "continuous" else None


def seats(lengths: Sequence[int], slots: int | None) -> list[tuple[int, int]]:
    """(first decode step, slot) of each request of a queue, from the tokens of its response, the first of which the
    prompt gives. A free slot is taken before the next step, the lowest first; a response of one token takes none."""
    width = min(slots or len(lengths), len(lengths))
    free, busy = list(range(width)), list[tuple[int, int]]()
    taken: list[tuple[int, int]] = []
    step = 0
    while len(taken) < len(lengths):
        round_ = sorted(free)[: len(lengths) - len(taken)]
        for slot in round_:
            length = lengths[len(taken)]
            taken.append((step, slot))
            if length > 1:
                free.remove(slot)
                heappush(busy, (step + length - 1, slot))
        if busy and not free:
            step = busy[0][0]
            while busy and busy[0][0] == step:
                free.append(heappop(busy)[1])
    return taken


def live_rows(lengths: Sequence[int], slots: int | None) -> Ints:
    """Of each decode step of a lane: rows that are decoding."""
    begin = np.array([start for start, _ in seats(lengths, slots)], dtype=np.int64)
    end = begin + np.maximum(np.array(lengths, dtype=np.int64), 1) - 1
    changes = np.zeros(int(end.max(initial=0)) + 1, np.int64)
    np.add.at(changes, begin, 1)
    np.add.at(changes, end, -1)
    return np.cumsum(changes)[:-1]


def _check_values(content: Content, table: Columns) -> None:
    file = "responses.parquet"
    endings, tokens = table["finish_reason"], table["new_tokens"]
    if strange := sorted(set(endings) - set(ENDINGS)):
        content.add("responses", file, f"an ending of {', '.join(ENDINGS)}", some(strange))
    scored = endings == "scored"
    likely = table["logprob"].astype(float)
    greedy = np.array([value is not None for value in table["greedy"].tolist()], bool)
    for wrong, expected, shown in (
        ((tokens < 1) | (table["prompt_tokens"] < 1), "at least one token of prompt and response", tokens),
        (scored & ~(np.isfinite(likely) & (likely <= PASSING)), "a log-likelihood of 0 or below", likely),
        (~scored & ~np.isnan(likely), "no log-likelihood of what was generated", likely),
        (scored != greedy, "greedy where a choice was scored, and only there", table["greedy"]),
    ):
        rows = np.flatnonzero(wrong)
        if len(rows):
            found = f"{shown[rows[0]]} at request {table['request'][rows[0]]}{_others(rows)}"
            content.add("responses", file, expected, found)
    for stream, own in rows_of(content, table):
        if 0 < scored[own].sum() < own.sum():
            content.add("responses", file, f"{stream} scored or generated", "both")
        elif not scored[own].any():
            _check_validity(content, stream, endings[own], table["response"][own])


def _check_validity(content: Content, stream: str, endings: NDArray[Any], texts: NDArray[Any]) -> None:
    """That a cell which answers nothing says so. Random weights cannot; older cells do not."""
    silent = content.status.get("invalid") == [] and content.config["model"]["kind"] != "random"
    if silent and len(endings) and ((endings == "length").all() or not any(text.strip() for text in texts)):
        content.add("invalid", "status.json", f"that all responses to {stream} are cut off or empty", "nothing said")


def _check_touched(content: Content, stream: str, steps: int) -> None:
    """That a cell whose policy waited in vain for a decode step says so."""
    waited = content.info["phases"] == "decode" and content.info["policy"] not in ("vanilla", "noise_floor")
    if waited and not steps and content.status.get("invalid") == []:
        content.add(
            "invalid", "status.json", f"that no step of {stream} was decode, and the policy idle", "nothing said"
        )


def check_steps(content: Content) -> None:
    """Steps as the responses' lengths make them, and as many experts as there can be. Only where the plan is kept."""
    steps, responses = content.table("steps"), content.table("responses")
    broken = {finding.rule for finding in content.findings} & {"plan", "coverage"}
    if steps is None or responses is None or broken:
        return
    file, layers = "steps.parquet", content.info["num_layers"]
    if strange := sorted(set(steps["subtask"]) - set(content.plan)):
        content.add("steps", file, f"rows of {', '.join(content.plan)}", some(strange))
    for stream, own in rows_of(content, responses):
        part = {name: column[steps["subtask"] == stream] for name, column in steps.items()}
        _check_touched(content, stream, len(part["step"]))
        _check_stream(content, stream, {name: column[own] for name, column in responses.items()}, part, layers)
    _check_active(content, steps)


def _check_stream(content: Content, stream: str, responses: Columns, steps: Columns, layers: int) -> None:
    lanes = content.plan[stream]["lanes"]
    tokens = dict(zip(responses["request"].tolist(), responses["new_tokens"].tolist(), strict=True))
    at_once = content.config["scoring"] == "prefill" and bool((responses["finish_reason"] == "scored").all())
    none = np.empty(0, np.int64)
    slots = _slots(content, stream)
    live = [none if at_once else live_rows([tokens[request] for request in lane], slots) for lane in lanes]
    counts = np.array([len(each) for each in live])
    wanted = np.array(
        [
            np.repeat(np.repeat(np.arange(len(lanes)), counts), layers),
            np.repeat(np.concatenate([np.arange(count) for count in counts] or [none]), layers),
            np.tile(np.arange(layers), counts.sum()),
            np.repeat(np.concatenate(live or [none]), layers),
        ],
        dtype=np.int64,
    )
    names = ("lane", "step", "layer", "live_rows")
    order = np.lexsort([steps[name] for name in names[2::-1]])
    found = np.array([steps[name][order] for name in names], dtype=np.int64)
    if wanted.shape == found.shape and (wanted == found).all():
        return
    file = "steps.parquet"
    for number, count in enumerate(counts):
        mine, theirs = wanted[:, wanted[0] == number], found[:, found[0] == number]
        if mine.shape != theirs.shape or (mine[:3] != theirs[:3]).any():
            expected = f"{count} steps of {layers} layers, {count * layers} rows, in lane {number} of {stream}"
            among = f"steps up to {theirs[1].max(initial=-1)}, layers up to {theirs[2].max(initial=-1)}"
            content.add("steps", file, expected, f"{theirs.shape[1]} rows: {among}")
            return
        if len(wrong := np.flatnonzero(mine[3] != theirs[3])):
            first = wrong[0]
            expected = f"{mine[3, first]} live rows in lane {number} of {stream}, step {mine[1, first]}"
            content.add("steps", file, expected, f"{theirs[3, first]}{_others(wrong)}")
            return
    content.add("steps", file, f"lanes 0 to {len(lanes) - 1} of {stream}", f"lane {found[0].max(initial=0)}")


def _check_active(content: Content, steps: Columns) -> None:
    experts, top_k, info = content.info.get("num_experts"), content.info.get("top_k"), content.info
    if experts is None or top_k is None:
        return  # older cells
    whole = content.is_untouched or info["policy"] == "no_drop" or info["phases"] == "prefill"
    least = top_k if whole else 1
    most = np.minimum(steps["live_rows"].astype(np.int64) * top_k, experts)
    wrong = np.flatnonzero((steps["active_experts"] < least) | (steps["active_experts"] > most))
    if len(wrong):
        row: dict[str, Any] = {name: column[wrong[0]] for name, column in steps.items()}
        place = "lane {lane} of {subtask}, step {step}, layer {layer}".format(**row)
        expected = f"{least} to {most[wrong[0]]} active experts for {row['live_rows']} live rows in {place}"
        content.add("active", "steps.parquet", expected, f"{row['active_experts']}{_others(wrong)}")


def _others(rows: Sequence[int] | Ints) -> str:
    return f", and {len(rows) - 1} more such rows" if len(rows) > 1 else ""
