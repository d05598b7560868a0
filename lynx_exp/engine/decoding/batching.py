"""What `batching=auto` comes to on a loaded model."""

from __future__ import annotations

from collections.abc import Callable

from lynx_exp.engine.decoding.loaded import LoadedModel


def batching(self: LoadedModel, asked: str = "auto", on_note: Callable[[str], None] = print) -> str:
    """What `auto` comes to on this model: continuous, or static where it has no slots, which `on_note` is told."""
    if asked != "auto" or self.has_slots:
        return "continuous" if asked == "auto" else asked
    on_note(f"batching=static: {type(self.model).__name__} has no slots: lanes drain")
    return "static"
