"""Rules of `lynx-results validate` on lanes: the batch plan, the responses to it, and their decode steps.

The lengths of a lane's responses determine which rows shared each of its steps. These rules compute that anew, without
the engine, and compare it with the stored slots and step records. A difference becomes a finding of the cell.
"""

# B slots of a lane, L layers, E experts, K experts of a token

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from lynx_exp.checks.findings import some
from lynx_exp.checks.folder_content import Columns, Content
from lynx_exp.store.file_types import PlanEntry

ENDINGS = ("eos", "stop", "length", "scored", "cut")
PASSING = 1e-6
"""Rounding may put a log-likelihood (nats) this far above 0."""

Ints = NDArray[np.int64]


def check_plan(content: Content) -> None:
    """Check that the plan has every request once, in lanes that are not too long, and that its digest fits."""
    for stream, plan in content.plan.items():
        lanes, batch, continuous = plan["lanes"], plan["batch_size"], plan["batching"] == "continuous"
        most = batch * content.config["waves"] if continuous else batch
        if not all(lanes):
            content.add("plan", "plan.json", f"requests in every lane of {stream}", "an empty lane")
        longest = max(map(len, lanes), default=0)
        if longest > most:
            content.add("plan", "plan.json", f"lanes of at most {most} requests in {stream}", f"one of {longest}")
        planned = sorted(request for lane in lanes for request in lane)
        if planned != list(range(len(planned))):
            repeated = [request for request, times in Counter(planned).items() if times > 1]
            found = f"{some(repeated)} more than once" if repeated else "others"
            content.add("plan", "plan.json", f"requests 0 to {len(planned) - 1} of {stream}, each once", found)
        _check_fillers(content, stream, plan)
        whole = [lanes, batch, plan["fillers"]] if continuous else lanes
        digest = hashlib.sha256(json.dumps(whole).encode()).hexdigest()
        if digest != plan["digest"]:
            content.add("plan", "plan.json", f"digest {digest[:12]} of {stream}", str(plan["digest"])[:12])


def _check_fillers(content: Content, stream: str, plan: PlanEntry) -> None:
    """Check that a continuous lane has fillers, and none that is also one of its own requests."""
    expected_lanes = len(plan["lanes"]) if plan["batching"] == "continuous" and plan["tail"] == "filler" else 0
    if len(plan["fillers"]) != expected_lanes:
        content.add(
            "plan", "plan.json", f"fillers for {expected_lanes} lanes of {stream}", f"for {len(plan['fillers'])}"
        )
    for number, (own, fillers) in enumerate(zip(plan["lanes"], plan["fillers"], strict=False)):
        repeated = [request for request, times in Counter([*set(own), *fillers]).items() if times > 1]
        if repeated:
            expected = f"fillers of lane {number} of {stream} that are not in it, each once"
            content.add("plan", "plan.json", expected, f"{some(repeated)} there, too")


def check_copies(content: Content) -> None:
    """Check that the rows of a full batch are different documents.

    Rows with copies of one prompt choose the same experts, so that a policy would look better than on real traffic.
    """
    every, config = content.tables.get("responses.parquet"), content.config
    if every is None:
        return
    for stream, own in rows_of(content, every):
        choice = bool((every["finish_reason"][own] == "scored").any())
        documents = list(
            zip(every["subtask"][own], every["doc_id"][own].tolist(), every["prompt_hash"][own], strict=True)
        )
        # with choices=together, the choices of one document fill a lane on purpose
        found = len(documents) if choice and config["choices"] == "together" else len(set(documents))
        if found < content.info["batch_size"]:
            expected = f"at least {content.info['batch_size']} documents for one full batch of {stream}"
            content.add("copies", "responses.parquet", expected, found)
        if choice or config["task"]["repeats"] not in (None, 1):
            continue
        in_lane = Counter(zip(every["lane"][own].tolist(), documents, strict=True))
        lanes = sorted({lane for (lane, _), times in in_lane.items() if times > 1})
        # data sets may hold a document twice; then it may also be twice in a lane
        if lanes and len(set(documents)) == len(set(every["request"][own].tolist())):
            content.add(
                "copies", "responses.parquet", f"each document of {stream} once in a lane", f"not so in {some(lanes)}"
            )


def rows_of(content: Content, table: Columns) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Split a table of responses or fidelity by stream: a task, or a mix, whose subtasks share their lanes.

    Yields:
        (name of the stream, mask of its rows, `[rows]` bool).
    """
    streams = list(content.plan)
    for stream in streams:
        yield stream, np.ones(len(table["request"]), bool) if len(streams) == 1 else table["subtask"] == stream


def check_responses(content: Content) -> None:
    """Check that each request has one response, in its planned lane and slot, with possible values."""
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
    """Check that each planned request has one response, in its lane. Only then can slots be checked."""
    file = "responses.parquet"
    planned = {request: number for number, lane in enumerate(lanes) for request in lane}
    found, counts = np.unique(requests, return_counts=True)
    missing = sorted(set(planned) - set(found.tolist()))
    unknown = sorted(set(found.tolist()) - set(planned))
    repeated = found[counts > 1].tolist()
    for numbers, what in ((missing, "no response to"), (unknown, "responses to"), (repeated, "several responses to")):
        if numbers:
            content.add("coverage", file, f"one response to each of {stream}'s {len(planned)} requests",
                        f"{what} {some(numbers)}")  # fmt: skip
    if missing or unknown or repeated:
        return False
    expected = np.array([planned[request] for request in requests.tolist()])
    wrong = np.flatnonzero(expected != in_lane)
    if len(wrong):
        first = wrong[0]
        content.add("coverage", file, f"request {requests[first]} of {stream} in lane {expected[first]}",
                    f"lane {in_lane[first]}{_others(wrong)}")  # fmt: skip
    return not len(wrong)


def _check_slots(content: Content, stream: str, rows: Columns) -> None:
    """Check the slots of requests and fillers, and that the fillers are the first planned ones."""
    at = {request: row for row, request in enumerate(rows["request"].tolist())}
    fillers = _fillers_of(content, stream)
    for number, lane in enumerate(content.plan[stream]["lanes"]):
        own = [at[request] for request in lane]
        extra = fillers.get(number)
        lengths = rows["new_tokens"][own].tolist()
        more = [] if extra is None else extra["new_tokens"].tolist()
        if extra is not None and not _planned(content, stream, number, extra):
            return
        entered = [] if extra is None else extra["request"].tolist()
        taken = seats(lengths, _slots(content, stream), more)
        found = rows["slot"][own].tolist() + ([] if extra is None else extra["slot"].tolist())
        wanted = [slot for _, slot in taken]
        wrong = [row for row, slot in enumerate(found) if row >= len(wanted) or slot != wanted[row]]
        if wrong:
            first = wrong[0]
            which = [*lane, *entered][first]
            place = f"slot {wanted[first]}" if first < len(wanted) else "no slot, for the lane was over"
            content.add("slots", "responses.parquet", f"request {which} of {stream}, lane {number}, in {place}",
                        f"slot {found[first]}{_others(wrong)}")  # fmt: skip
            return


def _fillers_of(content: Content, stream: str) -> dict[int, Columns]:
    """The filler rows of each lane, in the order of the plan, in which they entered."""
    table = content.fillers()
    found: dict[int, Columns] = {}
    for name, own in rows_of(content, table) if table else ():
        planned = content.plan[name]["fillers"]
        for lane in sorted(set(table["lane"][own].tolist())) if name == stream else ():
            place = {request: at for at, request in enumerate(planned[lane] if lane < len(planned) else [])}
            rows = np.flatnonzero(own & (table["lane"] == lane)).tolist()
            rows.sort(key=lambda row: place.get(table["request"][row], len(place)))
            found[lane] = {column: values[rows] for column, values in table.items()}
    return found


def _planned(content: Content, stream: str, number: int, extra: Columns) -> bool:
    """Check that the fillers of a lane are the first ones of its plan."""
    planned = content.plan[stream]["fillers"]
    wanted = (planned[number] if number < len(planned) else [])[: len(extra["request"])]
    if extra["request"].tolist() != wanted:
        found = some(sorted(set(extra["request"].tolist()) - set(wanted))) or "others"
        expected = f"the first {len(wanted)} fillers of lane {number} of {stream}"
        content.add("coverage", "responses.parquet", expected, found)
        return False
    return True


def _slots(content: Content, stream: str) -> int | None:
    """Slots of a continuous lane; None for a static one, which has a slot for each request."""
    plan = content.plan[stream]
    return plan["batch_size"] if plan["batching"] == "continuous" else None


def seats(lengths: Sequence[int], slots: int | None, fillers: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Replay a lane: when each request entered it, and in which slot.

    Prefill produces the first token of a response, so a response of n tokens takes part in n - 1 decode steps, and one
    of a single token leaves its slot at once. Requests enter free slots between steps, in order, the lowest slot first.

    Args:
        lengths: Tokens of the responses, in the order of the lane's queue.
        slots: Slots of a continuous lane; None for a static one.
        fillers: Tokens of the fillers' responses. They enter after the queue while a request of it still decodes.

    Returns:
        (first decode step, slot) of each request, and then of each filler that entered.
    """
    every = [*lengths, *fillers]
    width = len(lengths) if slots is None else slots
    free, busy = list(range(width)), list[tuple[int, int]]()
    taken: list[tuple[int, int]] = []
    step = end = 0
    while len(taken) < len(every):
        mine = len(taken) < len(lengths)
        if not mine and step >= end:
            break
        left = (len(lengths) if mine else len(every)) - len(taken)
        for slot in sorted(free)[:left]:
            length = every[len(taken)]
            taken.append((step, slot))
            end = max(end, step + length - 1) if mine else end
            if length > 1:
                free.remove(slot)
                heappush(busy, (step + length - 1, slot))
        if busy and not free:
            step = busy[0][0]
            while busy and busy[0][0] == step:
                free.append(heappop(busy)[1])
    return taken


def live_rows(lengths: Sequence[int], slots: int | None, fillers: Sequence[int] = ()) -> tuple[Ints, Ints]:
    """Replay a lane: how many rows decode in each of its steps.

    Args:
        lengths: As in `seats`.
        slots: As in `seats`.
        fillers: As in `seats`.

    Returns:
        (rows, rows that are not fillers), both `[steps]`.
    """
    begin = np.array([start for start, _ in seats(lengths, slots, fillers)], dtype=np.int64)
    tokens = np.array([*lengths, *fillers], dtype=np.int64)[: len(begin)]
    end = begin + np.maximum(tokens, 1) - 1
    counts = []
    for rows in (len(begin), len(lengths)):
        changes = np.zeros(int(end.max(initial=0)) + 1, np.int64)
        np.add.at(changes, begin[:rows], 1)
        np.add.at(changes, end[:rows], -1)
        counts.append(np.cumsum(changes)[:-1])
    return counts[0], counts[1]


def _check_values(content: Content, table: Columns) -> None:
    """Check lengths, finish reasons and log-likelihoods."""
    file = "responses.parquet"
    extra = content.fillers()
    if short := int((extra["new_tokens"] < 1).sum()):
        content.add("responses", file, "at least one token of every filler", f"none of {short}")
    endings, tokens = table["finish_reason"], table["new_tokens"]
    if unknown := sorted({*set(endings) - set(ENDINGS[:-1]), *set(extra["finish_reason"]) - set(ENDINGS)}):
        content.add("responses", file, f"an ending of {', '.join(ENDINGS)}", some(unknown))
    scored = endings == "scored"
    logprob = table["logprob"].astype(float)
    greedy = np.array([value is not None for value in table["greedy"].tolist()], bool)
    for wrong, expected, shown in (
        ((tokens < 1) | (table["prompt_tokens"] < 1), "at least one token of prompt and response", tokens),
        (scored & ~(np.isfinite(logprob) & (logprob <= PASSING)), "a log-likelihood of 0 or below", logprob),
        (~scored & ~np.isnan(logprob), "no log-likelihood of what was generated", logprob),
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


def _check_validity(content: Content, stream: str, endings: NDArray[np.object_], texts: NDArray[np.object_]) -> None:
    """Check that a cell whose responses are all cut off or empty is marked as invalid.

    Random models are excepted, since they cannot answer, and so are older cells, which have no such mark.
    """
    silent = content.status.get("invalid") == [] and content.config["model"]["kind"] != "random"
    if silent and len(endings) and ((endings == "length").all() or not any(text.strip() for text in texts)):
        content.add("invalid", "status.json", f"that all responses to {stream} are cut off or empty", "nothing said")


def _check_touched(content: Content, stream: str, steps: int) -> None:
    """Check that a cell is marked as invalid if its policy never acted, for want of a decode step."""
    idle = content.info["phases"] == "decode" and not content.is_untouched
    if idle and not steps and content.status.get("invalid") == []:
        content.add(
            "invalid", "status.json", f"that no step of {stream} was decode, and the policy idle", "nothing said"
        )


def check_steps(content: Content) -> None:
    """Check that the steps are those that the lengths of the responses imply, with possible numbers of experts."""
    steps, responses = content.table("steps"), content.table("responses")
    # responses that do not follow the plan imply nothing about steps, and have their own findings
    broken = {finding.rule for finding in content.findings} & {"plan", "coverage"}
    if steps is None or responses is None or broken:
        return
    file, layers = "steps.parquet", content.info["num_layers"]
    if unknown := sorted(set(steps["subtask"]) - set(content.plan)):
        content.add("steps", file, f"rows of {', '.join(content.plan)}", some(unknown))
    for stream, own in rows_of(content, responses):
        part = {name: column[steps["subtask"] == stream] for name, column in steps.items()}
        _check_touched(content, stream, len(part["step"]))
        _check_stream(content, stream, {name: column[own] for name, column in responses.items()}, part, layers)
    _check_active(content, steps)


def _check_stream(content: Content, stream: str, responses: Columns, steps: Columns, layers: int) -> None:
    """Compare the step rows of one stream with those that its responses imply."""
    lanes = content.plan[stream]["lanes"]
    tokens = dict(zip(responses["request"].tolist(), responses["new_tokens"].tolist(), strict=True))
    # scoring=prefill scores each choice in one pass, without any decode step
    at_once = content.config["scoring"] == "prefill" and bool((responses["finish_reason"] == "scored").all())
    none = np.empty(0, np.int64)
    slots, fillers = _slots(content, stream), _fillers_of(content, stream)
    live, scored = [], []
    for number, lane in enumerate(lanes):
        extra = fillers[number]["new_tokens"].tolist() if number in fillers else []
        both = (none, none) if at_once else live_rows([tokens[request] for request in lane], slots, extra)
        live.append(both[0])
        scored.append(both[1])
    # the rows of steps.parquet as they should be: lanes, in each its steps, in each its layers
    counts = np.array([len(each) for each in live])
    wanted = np.array(
        [
            np.repeat(np.repeat(np.arange(len(lanes)), counts), layers),
            np.repeat(np.concatenate([np.arange(count) for count in counts] or [none]), layers),
            np.tile(np.arange(layers), counts.sum()),
            np.repeat(np.concatenate(live or [none]), layers),
            np.repeat(np.concatenate(scored or [none]), layers),
        ],
        dtype=np.int64,
    )
    names = ("lane", "step", "layer", "live_rows", "scored_rows")
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
        for column, what in ((3, "live"), (4, "scored")):
            if len(wrong := np.flatnonzero(mine[column] != theirs[column])):
                first = wrong[0]
                expected = f"{mine[column, first]} {what} rows in lane {number} of {stream}, step {mine[1, first]}"
                content.add("steps", file, expected, f"{theirs[column, first]}{_others(wrong)}")
                return
    content.add("steps", file, f"lanes 0 to {len(lanes) - 1} of {stream}", f"lane {found[0].max(initial=0)}")


def _check_active(content: Content, steps: Columns) -> None:
    """Check that the numbers of active experts are possible: at least K where nothing is dropped, at most rows * K."""
    experts, top_k, info = content.info.get("num_experts"), content.info.get("top_k"), content.info
    if experts is None or top_k is None:
        return  # older cells
    whole = content.is_untouched or info["policy"] == "no_drop" or info["phases"] == "prefill"
    least = top_k if whole else 1
    most = np.minimum(steps["live_rows"].astype(np.int64) * top_k, experts)
    wrong = np.flatnonzero((steps["active_experts"] < least) | (steps["active_experts"] > most))
    if len(wrong):
        row: dict[str, object] = {name: column[wrong[0]] for name, column in steps.items()}
        place = "lane {lane} of {subtask}, step {step}, layer {layer}".format(**row)
        expected = f"{least} to {most[wrong[0]]} active experts for {row['live_rows']} live rows in {place}"
        content.add("active", "steps.parquet", expected, f"{row['active_experts']}{_others(wrong)}")


def _others(rows: Sequence[int] | Ints) -> str:
    """The end of a finding that shows only the first of several wrong rows."""
    return f", and {len(rows) - 1} more such rows" if len(rows) > 1 else ""
