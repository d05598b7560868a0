"""Cells that are not run although they are not done: they have failed too often, or what they need is known not to be
there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lynx_exp.run.planned_cell import Cell
from lynx_exp.store.cell_writer import record_failure
from lynx_exp.store.claims import Claims
from lynx_exp.store.faults import OUT_OF_MEMORY
from lynx_exp.store.file_types import CellInfo, CellStatus
from lynx_exp.store.hold import ClaimLost
from lynx_exp.store.reading import value_or_empty
from lynx_exp.wording import first_line


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """A cell that ran out of memory."""

    batch_size: int
    message: str
    kind: str


class Refusals:
    """Of one run; `note` tells it what has just run out of memory."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._memory: dict[str, OutOfMemory] = {}
        """Of cells that differ in nothing but batch size, the smallest that failed so."""
        for study in dict.fromkeys(cell.study for cell in cells):
            for info, status in _failed(study):
                error = status.get("error") or {}
                if error.get("kind") in OUT_OF_MEMORY and status.get("state") == "failed":
                    self._note(info, error)

    def note(self, cell: Cell) -> None:
        status = value_or_empty(cell.folder / "status.json")
        error = status.get("error") or {}
        if error.get("kind") in OUT_OF_MEMORY:
            self._note(cell.info(), error)

    def _note(self, info: CellInfo, error: Mapping[str, object]) -> None:
        key, size = _key(info), int(info["batch_size"])
        known = self._memory.get(key)
        if known is None or size < known.batch_size:
            found = OutOfMemory(batch_size=size, message=str(error.get("message")), kind=str(error["kind"]))
            self._memory[key] = found

    def record(self, cell: Cell, reason: str, claims: Claims) -> None:
        """Leave a status where there is none, so that who looks at the sweep sees why it is at its end."""
        known = self._memory.get(_key(cell.info()))
        if known is None or (cell.folder / "status.json").exists():
            return
        error = {"kind": known.kind, "class": "Refused", "message": reason, "where": None}
        with suppress(OSError, ClaimLost):  # it is told in the end in any case
            if claims.take(cell.folder):
                try:
                    if not (cell.folder / "status.json").exists():
                        record_failure(claims.hold(cell.folder), cell.info(), cell.config_yaml(), error, "skipped")
                finally:
                    claims.give_back(cell.folder)

    def reason(self, cell: Cell) -> str | None:
        """Why the cell is not run, in one line; None if it is."""
        config = cell.config
        known = self._memory.get(_key(cell.info()))
        if known is not None and known.batch_size < config.batch_size and not config.ignore_oom:
            return (
                f"not run: batch size {known.batch_size} of the same cell ran out of memory ({_why(known.message)}); "
                "ignore_oom=true tries it all the same"
            )
        status = value_or_empty(cell.folder / "status.json")
        failures, most = int(status.get("failures") or 0), config.max_failures
        if most is not None and failures >= most:
            last = (status.get("error") or {}).get("message") or "its process ended without a word"
            return f"not run: failed {failures} times in a row ({_why(last)}); max_failures=null tries again"
        return None


def _failed(study: Path) -> Iterable[tuple[CellInfo, CellStatus]]:
    """(cell.json, status.json) of the cells of a study that are not done."""
    for path in study.glob("*/cell.json") if study.is_dir() else ():
        if (path.parent / "DONE").exists():
            continue
        info, status = value_or_empty(path), value_or_empty(path.with_name("status.json"))
        if status and {"sizes_id", "device", "batch_size"} <= set(info):
            yield cast(CellInfo, info), cast(CellStatus, status)


def _key(info: CellInfo) -> str:
    """Equal for cells that differ in batch size only, on devices of one kind."""
    return f"{info['sizes_id']} {info['device']}"


def _why(message: str) -> str:
    return first_line(message) or "no message"
