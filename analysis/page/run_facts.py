"""What ran, on what, how it ended, and where the environments of compared cells differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lynx_exp.store.read import CellRecord
from lynx_exp.store.reading import value_or_empty

OF_A_CELL = ("command", "data_sha256", "data_revisions", "model", "numerics")
"""Parts of a provenance that belong to what was asked, not to where it ran; `numerics` repeats others."""
_STATES = {"running": "running, or lost", "not started": "not started"}


def environments(cells: Sequence[CellRecord]) -> dict[str, Counter[str]]:
    """Every field of the cells' provenance with its values, and how many cells have each."""
    found: dict[str, Counter[str]] = {}
    for cell in cells:
        for name, value in _environment(cell).items():
            found.setdefault(name, Counter())[value] += 1
    for counts in found.values():
        missing = len(cells) - counts.total()
        if missing:
            counts["not recorded"] += missing
    return found


def _environment(cell: CellRecord) -> dict[str, str]:
    return dict(_flat({name: value for name, value in cell.provenance.items() if name not in OF_A_CELL}))


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def hardware(cells: Sequence[CellRecord]) -> list[str]:
    """The kinds of machine: GPUs, else the CPU."""
    kinds = []
    for cell in cells:
        provenance = cell.provenance
        gpus = (provenance.get("torch") or {}).get("gpus") or []
        on_gpu = str(cell.info.get("device", "")).startswith("cuda") and gpus
        cpu = f"{provenance.get('cpu', 'unknown CPU')}, {provenance.get('cpus', '?')} CPUs"
        kinds.append(", ".join(f"{count} x {name}" for name, count in Counter(gpus).items()) if on_gpu else cpu)
    return list(dict.fromkeys(kinds))


def software(cells: Sequence[CellRecord]) -> list[str]:
    """Versions that decide the numbers, and the revision of this project's code."""
    lines = []
    for cell in cells:
        packages, git = cell.provenance.get("packages") or {}, cell.provenance.get("git") or {}
        names = ("lynx-exp", "torch", "transformers", "vllm", "lm_eval")
        versions = [f"{name} {packages[name]}" for name in names if packages.get(name)]
        if git.get("revision"):
            versions.append(f"git {git['revision'][:10]}{' with local changes' if git.get('dirty') else ''}")
        lines.append(", ".join(versions))
    return [line for line in dict.fromkeys(lines) if line]


def period(cells: Sequence[CellRecord]) -> tuple[str, str] | None:
    """When the first began and the last ended, UTC, to the minute."""
    started = [str(cell.status["started"]) for cell in cells if cell.status.get("started")]
    ended = [str(cell.status["finished"]) for cell in cells if cell.status.get("finished")]
    if not started or not ended:
        return None
    return min(started)[:16].replace("T", " "), max(ended)[:16].replace("T", " ")


def unfinished(cells: Sequence[CellRecord]) -> list[dict[str, str]]:
    """Of every cell that is not done: folder, policy, task, state, why, lanes that are kept, attempt."""
    rows = []
    for cell in cells:
        if cell.done:
            continue
        state, error = str(cell.status.get("state", "not started")), cell.status.get("error") or {}
        if cell.set_aside is not None:
            state, error = "set aside", {"message": cell.set_aside}
        plan = value_or_empty(cell.path / "plan.json")
        lanes = sum(len(part["lanes"]) for part in plan.values())
        kept = len(list((cell.path / "lanes").glob("*.json")))
        rows.append(
            {
                "cell": cell.path.name,
                "task": str(cell.info.get("task", "")),
                "policy": str(cell.info.get("policy_label", "")),
                "batch size": str(cell.info.get("batch_size", "")),
                "state": _STATES.get(state, state),
                "why": ": ".join(str(error[name]) for name in ("kind", "class", "message") if error.get(name)),
                "lanes kept": f"{kept} of {lanes}" if lanes else "-",
                "attempt": str(cell.status.get("attempt", "-")),
            }
        )
    return rows


def invalid(cells: Sequence[CellRecord]) -> list[tuple[CellRecord, str]]:
    """Finished cells whose answers mean nothing, and why."""
    return [(cell, str(reason)) for cell in cells for reason in cell.status.get("invalid") or ()]


def timing_doubts(cells: Sequence[CellRecord]) -> list[tuple[CellRecord, str]]:
    """Cells whose latency should be taken with care, and why."""
    found = []
    for cell in cells:
        timing = cell.timing_info
        if timing.get("stable") is False:
            found.append((cell, "step times had not settled when the warm-up ended"))
        if timing.get("precision_reached") is False:
            found.append((cell, f"{timing.get('windows', '?')} windows did not reach the precision asked for"))
    return found


def sandboxes(cells: Sequence[CellRecord]) -> Counter[str]:
    """Where generated code ran: tier and self-test, with the number of documents."""
    found: Counter[str] = Counter()
    for cell in cells:
        column = cell.samples().column("sandbox").drop_null() if "sandbox" in cell.samples().schema.names else ()
        for entry in column:
            found[_tier(str(entry))] += 1
    return found


def _tier(record: str) -> str:
    try:
        told = json.loads(record)
        fell = ", ".join(map(str, told.get("fell", ())))
        return f"{told['tier']} (self-test: {told.get('held', '?')} attempts held{f', failed: {fell}' if fell else ''})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return record
