"""Whether a loaded model's rows may enter and leave at any time, and what `batching=auto` comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from lynx_exp.engine.decoder import decodes_in_slots
from lynx_exp.engine.slots import attends_fully, has_slots

if TYPE_CHECKING:
    from lynx_exp.engine.engine import Engine


def enters_any_time(model: PreTrainedModel) -> bool:
    """Whether its rows can stand in slots; where that hangs on more than full attention, it is tried."""
    config = model.config.get_text_config()
    return has_slots(config) and (attends_fully(config) or decodes_in_slots(model))


def batching(self: Engine, asked: str = "auto", on_note: Callable[[str], None] = print) -> str:
    """What `auto` comes to on this model: continuous, or static where it has no slots, which `on_note` is told."""
    if asked != "auto" or self.has_slots:
        return "continuous" if asked == "auto" else asked
    on_note(f"batching=static: {type(self.model).__name__} has no slots: lanes drain")
    return "static"
