"""What a cell's record says of selection kernels that did not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_exp.launch.progress import Progress

if TYPE_CHECKING:
    from lynx_exp.routing import Policy


def note_fallbacks(policy: Policy | None, notes: list[str], progress: Progress) -> None:
    """Add to `notes` why a policy was selected in torch though its kernel was asked for; on the terminal, once a
    run."""
    from lynx_exp.routing.kernels import fallback_notes

    for text in fallback_notes(policy) if policy is not None else ():
        notes.append(text)
        progress.note_once(text)
