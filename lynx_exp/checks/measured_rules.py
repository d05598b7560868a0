"""Rules on what was measured beside the responses: times of decode steps, and distances from vanilla."""

from __future__ import annotations

from typing import Any

import numpy as np

from lynx_exp.checks.findings import some
from lynx_exp.checks.folder_content import Columns, Content
from lynx_exp.checks.lane_rules import rows_of

LEAST_ROUNDS = 2
"""Of a full warm-up."""
TINY = 1e-9


def check_timing(content: Content) -> None:
    table, info = content.table("timing"), content.values.get("timing.json")
    if table is None or info is None:
        return
    file = "timing.parquet"
    names = ["vanilla"] if content.is_untouched else ["vanilla", "policy"]
    table = {
        name: column[~np.isin(table["name"], [f"{own} prefill" for own in names])] for name, column in table.items()
    }
    if strange := sorted(set(table["name"]) ^ set(names)):
        content.add("timing", file, f"times of {' and '.join(names)}", f"{some(strange)} too many or missing")
        return
    windows, repeats = int(info["windows"]), int(info["repeats"])
    steps = [table["step"][table["window"] == window].max(initial=-1) + 1 for window in range(windows)]
    wanted = [(w, repeat, step) for w in range(windows) for repeat in range(repeats) for step in range(steps[w])]
    for name in names:
        own = table["name"] == name
        found = sorted(zip(*(table[column][own].tolist() for column in ("window", "repeat", "step")), strict=True))
        if found != wanted or not all(1 <= count <= int(info["new_tokens"]) for count in steps):
            shown = f"{len(found)} rows, {len(set(found) & set(wanted))} of them such"
            expected = f"{windows} windows, {repeats} repeats of up to {info['new_tokens']} steps of {name}, each once"
            content.add("timing", file, expected, shown)
    _check_places(content, table)
    bad = np.flatnonzero(~(np.isfinite(table["ms"]) & (table["ms"] > 0)))
    if len(bad):
        content.add("timing", file, "milliseconds above 0", f"{table['ms'][bad[0]]} in row {bad[0]}")
    if info["batch_size"] != content.info["batch_size"]:
        content.add("timing", "timing.json", f"batch_size {content.info['batch_size']}", info["batch_size"])
    attempt = content.status.get("attempt")
    if attempt is not None and info.get("attempt", attempt) != attempt:
        content.add("timing", "timing.json", f"times of attempt {attempt}, which finished the cell", info["attempt"])
    _check_warm_up(content, info, names)
    if info.get("precision_reached") is False:
        less = f"wider intervals after {repeats} repeats: not a basis for a ranking"
        content.add("precision", "timing.json", "times as precise as was asked for", less)
    others, cpus = info.get("other_threads"), info.get("cpus")
    if others is not None and cpus and others + min(info["threads"], cpus) > cpus:
        content.add("busy", "timing.json", f"no other threads on the {cpus} CPUs", f"{others:g}, median while timed")
    _check_hardware(content, table, info, names)
    experts = content.info.get("num_experts")
    for name in ("vanilla_active_experts", *(["policy_active_experts"] if not content.is_untouched else [])):
        if experts is not None and not 1 <= (info[name] or 0) <= experts:
            content.add("timing", "timing.json", f"{name} between 1 and {experts}", info[name])


def _check_places(content: Content, table: Columns) -> None:
    """That what was timed is steps of the run, with the rows that were live in them."""
    steps = content.table("steps")
    if steps is None:
        return
    names = ("subtask", "lane", "step", "live_rows")
    ran = set(zip(*(steps[name].tolist() for name in names), strict=True))
    own = [table["subtask"], table["lane"], table["start_step"] + table["step"], table["live_rows"]]
    for subtask, lane, step, live in sorted(set(zip(*(column.tolist() for column in own), strict=True)) - ran)[:1]:
        expected = "steps of the run, with the rows that were live in them"
        content.add("timing", "timing.parquet", expected, f"{live} rows in lane {lane} of {subtask}, step {step}")


def _check_hardware(content: Content, table: Columns, info: dict[str, Any], names: list[str]) -> None:
    """That bytes, rates and shares follow from the steps, as far as the cell has them: older ones do not."""
    read = info.get("bytes")
    if read is None or not (table["ms"] > 0).all():
        return
    each = read["once"] + read["layers"] * table["active_experts"] * read["expert"]
    each = each + table["live_rows"] * (read["row"] + table["context"] * read["position"])
    for name in names:
        own = table["name"] == name
        rate = float(np.mean(each[own] / table["ms"][own])) / 1e6
        share = rate / (info["copy_gb_s"] * info["devices"])
        for what, expected in (("step_gb", float(np.mean(each[own])) / 1e9), ("gb_s", rate), ("s_mbu", share)):
            found = info.get(f"{name}_{what}")
            if found is None or not np.isclose(found, expected, rtol=1e-6):
                content.add("timing", "timing.json", f"{name}_{what} {expected:.6g}, from the timed steps", found)


def _check_warm_up(content: Content, info: dict[str, object], names: list[str]) -> None:
    rounds = info.get("warmup_round_ms")
    if not isinstance(rounds, dict):
        return  # older cells
    done = {name: len(rounds.get(name) or ()) for name in names}
    least = max(LEAST_ROUNDS, int(str(info["warmup_rounds"])))
    for name, count in done.items():
        if count < least:
            content.add("timing", "timing.json", f"{least} rounds of warm-up of {name}", count)
    if info.get("stable") is False:
        content.add("warm-up", "timing.json", "steps that take as long as those before", f"not after {least} rounds")


def check_fidelity(content: Content) -> None:
    table, responses = content.table("fidelity"), content.table("responses")
    if table is None or responses is None:
        return
    file = "fidelity.parquet"
    for stream, own in rows_of(content, table):
        planned = {request: number for number, lane in enumerate(content.plan[stream]["lanes"]) for request in lane}
        found = table["request"][own].tolist()
        if sorted(found) != sorted(planned):
            wrong = sorted(set(found) ^ set(planned)) or [request for request in set(found) if found.count(request) > 1]
            content.add(
                "fidelity", file, f"each of {stream}'s {len(planned)} requests once", f"not so for {some(wrong)}"
            )
            continue
        astray = [r for r, lane in zip(found, table["lane"][own].tolist(), strict=True) if planned[r] != lane]
        if astray:
            content.add("fidelity", file, f"{stream}'s requests in the lanes of the plan", f"not so for {some(astray)}")
    _check_distances(content, table)


def _check_distances(content: Content, table: Columns) -> None:
    file, tokens, agreeing = "fidelity.parquet", table["tokens"], table["agreeing"]
    possible = np.isfinite(table["kl"]) & (table["kl"] >= -TINY)
    for wrong, expected, shown in (
        (tokens < 1, "at least one token", tokens),
        ((agreeing < 0) | (agreeing > tokens), "as many agreeing tokens as tokens, or fewer", agreeing),
        (~possible, "a divergence of 0 or above", table["kl"]),
        *_wrong_masses(table),
    ):
        rows = np.flatnonzero(wrong)
        if len(rows):
            content.add("fidelity", file, expected, f"{shown[rows[0]]} at request {table['request'][rows[0]]}")


def _wrong_masses(table: Columns) -> list[tuple[np.ndarray, str, np.ndarray]]:
    """As above, of cells that have the router's mass on record."""
    found = []
    for name, most in (("retained", table["tokens"] - 1), ("prompt_retained", table.get("prompt_tokens"))):
        if name in table and most is not None:
            wrong = ~np.isfinite(table[name]) | (table[name] < 0) | ((most == 0) & (table[name] > 0))
            found.append((wrong, f"{name} of at least 0, and 0 where there are no tokens", table[name]))
    return found
