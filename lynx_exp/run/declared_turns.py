"""How a plan asks a model that is not here: by what its preset says of its chat template and of its sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lynx_exp.config import Config
from lynx_exp.run.model_facts import known_facts
from lynx_exp.tasks.chat import ChatTemplate
from lynx_exp.tasks.thinking import FLAGS


def is_declared(config: Config) -> bool:
    """Whether it is a plan of a model that is known by its preset alone."""
    return config.plan and bool(config.model.shape) and known_facts(config.model, plan=True).declared


@dataclass(frozen=True)
class UnseenTemplate(ChatTemplate):
    """Turns by their texts alone: what a template puts around them is not known, and is short."""

    def _apply(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return "\n".join(turn["content"] for turn in turns)


def declared_template(config: Config) -> ChatTemplate:
    """ValueError for turns, or a switch of thinking, that the preset says there are none of."""
    task, model = config.task, config.model
    says = model.checkpoint
    if says.template == "none":
        raise ValueError(
            f"task.apply_chat_template=true: {model.id} has no chat template (model.checkpoint.template=none"
            f"{says.doubt('template')}); leave it false"
        )
    if task.thinking is not None and says.thinking not in (None, "flag"):
        why = {
            "none": "never thinks: its chat template has no word of it",
            "always": "always thinks: its chat template has no flag for it",
            "effort": "thinks as task.chat_template_args.reasoning_effort says, and has no flag for it",
        }[str(says.thinking)]
        raise ValueError(
            f"task.thinking={str(task.thinking).lower()}: {model.id} {why} (model.checkpoint.thinking={says.thinking}"
            f"{says.doubt('thinking')}); leave task.thinking out"
        )
    arguments = dict(task.chat_template_args)
    for flag in FLAGS:
        if flag in arguments and says.thinking is not None and says.flag != flag:
            raise ValueError(
                f"task.chat_template_args.{flag}={str(arguments[flag]).lower()}: the template of {model.id} has no "
                f"such flag (model.checkpoint.thinking={says.thinking}{says.doubt('thinking')})"
            )
    return UnseenTemplate(f"declared {model.id}", None, tuple(sorted(arguments.items())))  # type: ignore[arg-type]


def declared_drawing(config: Config) -> dict[str, Any]:
    """`model.checkpoint.generation`. ValueError where it says nothing."""
    model = config.model
    if not model.checkpoint.generation:
        raise ValueError(
            f"task.generation=model: {model.id} is not here, and its preset does not know its generation_config.json; "
            "`lynx-prepare prefetch` with the same arguments fetches it"
        )
    return dict(model.checkpoint.generation)
