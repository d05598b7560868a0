"""Weights & Biases: one run a cell, rebuilt from the cell's record. Offline by default; no failure does harm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_exp.store.provenance import scrub

if TYPE_CHECKING:
    from lynx_exp.config import TrackerConfig
    from lynx_exp.store.read import CellRecord

SAMPLES_SHOWN = 50


class WandbTracker:
    """Project = the tracker's, group = the study, job type = the policy, id = cell and attempt: a cell has one run."""

    def __init__(self, config: TrackerConfig, study: Path) -> None:
        self._config = config
        self._study = study
        self._warned = False

    def log_cell(self, record: CellRecord, config: dict[str, Any]) -> None:
        """Metrics, batch behaviour and latency as summary; active experts by decode step; some samples."""
        self._guarded(lambda: self._log_cell(record, config))

    def log_figures(self, files: Sequence[Path]) -> None:
        """One run of the study, with its pictures."""
        self._guarded(lambda: self._log_figures(files))

    def close(self) -> None:
        """Every run was finished when it was logged."""

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a tracker must not cost a cell
            if not self._warned:
                print(f"lynx-exp: warning: wandb: {type(error).__name__}: {error}; the run goes on", file=sys.stderr)
            self._warned = True

    def _start(self, **about: Any) -> Any:
        import wandb

        mode: Any = self._config.mode
        self._study.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            group=self._study.name,
            mode=mode,
            dir=str(self._study),
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_code=True, disable_git=True
            ),
            **about,
        )

    def _log_cell(self, record: CellRecord, config: dict[str, Any]) -> None:
        import wandb

        info = record.info
        run = self._start(
            id=f"{info['cell_id'][:20]}-{record.status['attempt']}",
            name=f"{info['task']} {info['policy_label']} b{info['batch_size']}",
            job_type=info["policy"],
            tags=[*self._config.tags, info["task"], info["policy"], f"batch_{info['batch_size']}"],
            config=_scrubbed(config) | {"cell": info, "provenance": record.provenance},
        )
        try:
            for step, active in enumerate(_active_by_step(record)):
                run.log({"decode_step": step, "active_experts": active})
            table = wandb.Table(columns=["subtask", "doc_id", "score", "target", "filtered"])
            for row in record.samples().slice(0, SAMPLES_SHOWN).to_pylist():
                table.add_data(row["subtask"], row["doc_id"], row["score"], row["target"], row["filtered"])
            run.log({"samples": table})
            run.summary.update(_summary(record))
        finally:
            run.finish()

    def _log_figures(self, files: Sequence[Path]) -> None:
        import wandb

        run = self._start(name=f"{self._study.name} figures", job_type="figures", tags=list(self._config.tags))
        try:
            run.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in files})
        finally:
            run.finish()


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrubbed(item) for key, item in value.items()}
    return scrub(value) if isinstance(value, str) else value


def _active_by_step(record: CellRecord) -> list[float]:
    """Mean active experts over lanes and layers, a decode step."""
    rows = record.steps().group_by("step").aggregate([("active_experts", "mean")]).sort_by("step").to_pylist()
    return [row["active_experts_mean"] for row in rows]


def _summary(record: CellRecord) -> dict[str, Any]:
    metrics = record.metrics
    summary = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    if "matched" in metrics:
        summary |= {f"matched/{key}": value for key, value in metrics["matched"].items()}
    for row in metrics["metrics"]:
        name = f"{row['subtask']}/{row['metric']}" + ("" if row["headline"] else f",{row['filter']}")
        summary[name] = row["value"]
    timing = record.timing()
    if timing is not None:
        for row in timing.group_by("name").aggregate([("ms", "mean")]).to_pylist():
            summary[f"tpot_ms/{row['name']}"] = row["ms_mean"]
    return summary | {"seconds": record.status["seconds"]}
