"""What `batching=auto` comes to on a model: continuous where its rows may enter and leave at any time, else static."""

from __future__ import annotations

from copy import copy

from lynx_exp.config import Config
from lynx_exp.models.slotless import refuse_unbatched
from lynx_exp.run.model_facts import ModelFacts


def with_batching(config: Config, facts: ModelFacts) -> Config:
    """The config with the batching of its cell. ValueError for what the model cannot do, where it was asked for."""
    if config.backend == "transformers":
        refuse_unbatched({"model_type": facts.model_type})
    if _slotless(config, facts) is not None:
        whose = f"model.id={facts.name} ({facts.model_type}) {facts.slotless}"
        if config.batching == "continuous":
            raise ValueError(
                f"batching=continuous: {whose}: its rows cannot enter at any time; give batching=static, or auto"
            )
        if config.measure.latency:
            raise ValueError(
                f"measure.latency=true: {whose}: its steps cannot be done again, and are not timed; "
                "give measure.latency=false"
            )
    if config.batching != "auto":
        return config
    resolved = copy(config)  # its fields are checked
    resolved.batching = "static" if _slotless(config, facts) is not None else "continuous"
    return resolved


def batching_note(config: Config, facts: ModelFacts) -> str | None:
    """What the terminal and the record say where `auto` comes to static."""
    if config.batching != "auto" or _slotless(config, facts) is None:
        return None
    return (
        f"batching=static: {facts.name} ({facts.model_type}) {facts.slotless}: its lanes drain, which flatters "
        "batch-aware policies; compare only with other static cells"
    )


def _slotless(config: Config, facts: ModelFacts) -> str | None:
    """Why the cell has no slots. vLLM has its own."""
    return facts.slotless if config.backend == "transformers" else None
