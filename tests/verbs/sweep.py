"""A study of cells in any state, as their writers, their processes and sweeps leave them; no model runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lynx_exp.store.cell_writer import CellWriter
from lynx_exp.store.claims import Claims
from lynx_exp.store.faults import Fault
from lynx_exp.store.files import read_json, write_json
from lynx_exp.store.identity import SCHEMA, code_digest
from lynx_exp.store.sweeps import SweepCell, write_sweep
from lynx_exp.store.tables import RESPONSES, LaneRecord

START = datetime(2026, 1, 1, tzinfo=UTC)
LANES = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


class Sweep:
    """A study whose cells are put into any state, as `CellWriter` and `Claims` would leave them."""

    def __init__(self, root: Path, claims: Claims) -> None:
        self.study, self.claims = root / "study", claims
        self.study.mkdir()

    def begin(self, name: str, lanes: int, code: str | None = None, asks: str = "a", **info: Any) -> CellWriter:
        """`code`: None is that of now."""
        plan = {"task": {"lanes": LANES, "digest": "d", "batch_size": 3, "batching": "static", "seed": 0}}
        provenance = {"code_sha256": code or code_digest(), "model": {"digest": "w"}, "data_sha256": {"task": "d"}}
        assert self.claims.take(self.study / name)
        writer = CellWriter.open(
            self.claims.hold(self.study / name),
            info={"schema": SCHEMA, "cell_id": name} | info,
            config_yaml=f"policy: {{name: {asks}}}\n",
            provenance=provenance,
            plan=plan,
        )
        for lane in range(len(writer.lanes["task"]), lanes):
            rows = [dict.fromkeys(RESPONSES.names) | {"request": request} for request in LANES[lane]]
            writer.commit(LaneRecord(subtask="task", lane=lane, rows=rows, live_rows=[], active_experts=[]))
        return writer

    def cell(self, name: str, state: str, lanes: int = 0, **more: Any) -> Path:
        folder = self.study / name
        if state == "waiting":
            return folder
        writer = self.begin(name, lanes, **more)
        if state == "running":
            return folder
        elif state == "done":
            writer.finish(samples=[], metrics={})
        elif state == "damaged":
            writer.interrupt()
            (folder / "status.json").write_text('{"state": ')
        elif state == "failed":
            writer.fail(Fault(kind="oom_device", cls="OutOfMemoryError", message="CUDA out of memory\nmore"), "trace")
        elif state in ("interrupted", "preempted"):
            writer.interrupt(state)  # type: ignore[arg-type]
        elif state == "skipped":
            error = {"kind": "oom_device", "class": "X", "message": "batch 8 ran out of memory"}
            write_json(folder / "status.json", read_json(folder / "status.json") | {"state": "skipped", "error": error})
        self.claims.give_back(folder)
        return folder

    def asks_for(self, *names: str, started: datetime = START) -> None:
        file = write_sweep(
            self.study, [SweepCell(folder=name, name=f"the {name}", requests=10) for name in names], ["x"]
        )
        write_json(file, read_json(file) | {"started": started.isoformat()})
