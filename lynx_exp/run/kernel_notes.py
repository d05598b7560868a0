"""What a cell's record says of how its steps ran, and of kernels that did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_exp.run.run_progress import Progress

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine
    from lynx_exp.routing import Policy
    from lynx_exp.store.cell_writer import CellWriter


def show_slow_steps(engine: LaneEngine, progress: Progress) -> None:
    """Show what its steps take long for, once a run; what a pack before made of them is not this one's."""
    steps = getattr(engine, "steps", None)
    if steps is not None:
        steps.say = progress.note_once
        steps.forget()


def record_execution(engine: LaneEngine, policy: Policy | None, writer: CellWriter, progress: Progress) -> None:
    """How the engine ran the cell: into its status."""
    steps = getattr(engine, "steps", None)
    writer.steps_ran = None if steps is None else steps.record()
    note_fallbacks(policy, getattr(engine, "router_note", None), writer.notes, progress)


def note_fallbacks(policy: Policy | None, router_note: str | None, notes: list[str], progress: Progress) -> None:
    """Add to `notes` why a policy was selected in torch though its kernel was asked for, and why routers were not fused
    (`Engine.router_note`); on the terminal, once a run."""
    from lynx_exp.routing.backends.triton.kernels import fallback_notes

    found = fallback_notes(policy) if policy is not None else []
    for text in [*found, *([] if router_note is None else [router_note])]:
        notes.append(text)
        progress.note_once(text)
