"""A Weights & Biases workspace, or report, of studies: panels over what `lynx_exp.tracking.run_content` logs.

Needs wandb-workspaces (`pip install '.[dashboard]'`). Nothing here talks to a server but `save`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from lynx_exp.store.read import CellRecord
from lynx_exp.tracking.run_content import STEP, summary

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.reports.v2.interface import BlockTypes, PanelTypes
    from wandb_workspaces.workspaces import Workspace

Kind = Literal["workspace", "report"]
HARDWARE = {"s_mbu": "share of a plain copy's rate (S-MBU)", "j_per_token": "energy of a decoded token, J"}
LABEL = "policy_label"
"""The config key that runs are grouped and coloured by."""


@dataclass(frozen=True, kw_only=True)
class PanelData:
    """What the panels are about."""

    studies: tuple[str, ...]
    subtasks: tuple[str, ...]
    """Those that have a headline."""
    stepped: tuple[str, ...]
    """Subtasks (of a mix the stream) that decode steps were recorded of."""
    timed: bool
    hardware: tuple[str, ...]
    """What is known of it, of HARDWARE."""
    compared: bool
    """Whether distributions were compared with vanilla's."""

    @classmethod
    def of(cls, records: Sequence[CellRecord]) -> PanelData:
        subtasks = [row["subtask"] for cell in records for row in cell.metrics["metrics"] if row["headline"]]
        stepped = [name for cell in records for name in cell.steps().column("subtask").unique().to_pylist()]
        return cls(
            studies=tuple(dict.fromkeys(cell.info["study"] for cell in records)),
            subtasks=tuple(dict.fromkeys(subtasks)),
            stepped=tuple(dict.fromkeys(stepped)),
            timed=any((cell.path / "timing.parquet").exists() for cell in records),
            hardware=tuple(name for name in HARDWARE if any(name in summary(cell) for cell in records)),
            compared=any((cell.path / "fidelity.parquet").exists() for cell in records),
        )


def build(kind: Kind, shown: PanelData, *, entity: str, project: str, printed: bool = False) -> Workspace | Report:
    """A `Workspace` or a `Report`, not saved. ValueError if wandb-workspaces is not installed.

    `printed`: without a server, at which a report otherwise looks up the project of its runs; then they are those of
    the report's own.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(f"a dashboard needs wandb-workspaces ({error}); run: pip install '.[dashboard]'") from error
    sections = _sections(reports, shown)
    name = ", ".join(shown.studies)
    runs = f"Group in [{', '.join(repr(study) for study in shown.studies)}] and JobType = 'eval'"
    if kind == "workspace":
        return workspaces.Workspace(
            entity=entity,
            project=project,
            name=f"{name}: expert selection",
            sections=[
                workspaces.Section(name=title, panels=panels, is_open=number < 3)
                for number, (title, panels) in enumerate(sections)
            ],
            runset_settings=workspaces.RunsetSettings(filters=runs, pinned_columns=_columns(shown)),
        )
    blocks: list[BlockTypes] = [
        reports.P(
            "Each run is a cell: a model, an expert-selection policy, a task and a serving batch size. Numbers without "
            "an interval here: `lynx-results table` and `lynx-results report` give them, paired with vanilla."
        )
    ]
    where, project_there = ("", "") if printed else (entity, project)
    for title, panels in sections:
        runset = reports.Runset(entity=where, project=project_there, name=name, filters=runs)
        blocks += [reports.H2(title), reports.PanelGrid(runsets=[runset], panels=panels)]
    heading = f"{name}: expert selection"[:128]
    return reports.Report(entity=entity, project=project, title=heading, blocks=blocks, width="fluid")


def _columns(shown: PanelData) -> list[str]:
    columns = [
        f"config:{LABEL}.value",
        "config:batch_size.value",
        *(f"summary:score/{name}" for name in shown.subtasks),
    ]
    return [*columns, "summary:active_experts", *(["summary:speedup"] if shown.timed else [])]


def _sections(wr: ModuleType, shown: PanelData) -> list[tuple[str, list[PanelTypes]]]:
    """(title, panels), in order."""
    label = wr.Config(LABEL)
    scores = [wr.SummaryMetric(f"score/{name}") for name in shown.subtasks]
    savings = [("active_experts", "active experts (per layer and step)")]
    savings += [("speedup", "decode speed-up (x vanilla)")] if shown.timed else []
    trade = [
        wr.ScatterPlot(title=f"{name}: score against {words}", x=wr.SummaryMetric(key), y=score)
        for key, words in savings
        for name, score in zip(shown.subtasks, scores, strict=True)
    ]
    curves = [
        panel
        for name in shown.stepped
        for panel in (
            wr.LinePlot(
                title=f"{name}: active experts by decode step", x=STEP, y=[f"steps/{name}/active_experts"],
                title_x="decode step", title_y="experts per layer", groupby=label, groupby_aggfunc="mean",
            ),
            wr.LinePlot(
                title=f"{name}: how active experts are spread", x=STEP, y=[f"steps/{name}/histogram"],
                title_x="decode step", title_y="experts of a layer in a lane",
            ),
        )
    ]  # fmt: skip
    sections = [
        ("What a policy costs and what it saves", trade),
        (
            "Scores by policy",
            [
                wr.BarPlot(title=f"score/{name}", metrics=[f"score/{name}"], groupby=label, groupby_aggfunc="mean")
                for name in shown.subtasks
            ],
        ),
        ("Active experts", curves),
    ]
    if shown.timed:
        times = [("step_ms", "decode step, ms"), ("speedup", "decode speed-up, x vanilla")]
        times += [(name, HARDWARE[name]) for name in shown.hardware]
        panels = [wr.BarPlot(title=words, metrics=[key], groupby=label, groupby_aggfunc="mean") for key, words in times]
        sections.append(("Latency", panels))
    if shown.compared:
        kl = wr.ScatterPlot(
            title="KL divergence from vanilla (nats per token) against active experts",
            x=wr.SummaryMetric("active_experts"), y=wr.SummaryMetric("kl"),
        )  # fmt: skip
        sections.append(("Distance from vanilla", [kl]))
    return [*sections, ("Answers", [wr.WeavePanelSummaryTable(table_name="samples")])]
