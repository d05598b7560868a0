"""What `batching=auto` comes to on a loaded model."""

from __future__ import annotations

from collections.abc import Callable

from lynx_exp.engine.decoding.loaded import LoadedModel


def batching(self: LoadedModel, requested: str = "auto", on_note: Callable[[str], None] = print) -> str:
    """What `batching=auto` comes to on this model.

    Args:
        requested: auto, continuous or static.
        on_note: Called with a line where `auto` comes to static.

    Returns:
        continuous, or static for a model whose cache has no slots; what is not `auto` comes back as it is.
    """
    if requested != "auto" or self.has_slots:
        return "continuous" if requested == "auto" else requested
    on_note(f"batching=static: {type(self.model).__name__} has no slots: lanes drain")
    return "static"
