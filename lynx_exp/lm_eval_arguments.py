"""What lm-eval's `--model_args` give the model `lynx`: read, checked, made into what the engine takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TypeAlias

from lynx_exp.config import SANDBOXES, did_you_mean, one_of

if TYPE_CHECKING:
    from lynx_exp.routing import Policy
    from lynx_exp.tasks.run_programs import Sandbox

Arguments: TypeAlias = Mapping[str, object]
"""By name."""


def sandbox_of(name: str, confirmed: bool) -> Sandbox | None:
    """None for auto, which is opened where there is a program to run."""
    one_of("sandbox", name, SANDBOXES)
    if name == "auto":
        return None
    from lynx_exp.tasks.run_programs import open_sandbox

    return open_sandbox(name, confirm_unsafe_code=confirmed)


def policy_of(name: str, parameters: Arguments, settings_of_model: Sequence[str]) -> Policy | None:
    """None for vanilla. `settings_of_model`: names of the model's own arguments. ValueError for what neither has."""
    from lynx_exp.routing import build_policy
    from lynx_exp.routing.build import policy_class

    own = [part.name for part in fields(policy_class(name)) if part.init]
    given = {}
    for key, value in parameters.items():
        plain = key.removeprefix("policy.")
        if plain == "match_active":
            raise ValueError("match_active: needs vanilla's responses to the same requests; lynx-exp has it")
        if plain not in own:
            hint = did_you_mean(plain, [*own, *settings_of_model])
            raise ValueError(
                f"{key}={value}: unknown{hint}; policy={name} takes {', '.join(own)}; "
                f"the model takes {', '.join(settings_of_model)}"
            )
        given[plain] = value
    policy = build_policy(name, **given)
    return None if name == "vanilla" else policy


def read_argument(value: object) -> object:
    """As the command gives it, where null is a word."""
    return None if isinstance(value, str) and value.lower() in ("none", "null") else value


def layers_of(value: str | int | Sequence[int] | None) -> str | None:
    """As the engine takes it, whatever the command has made of it."""
    if value is None or isinstance(value, str | int):
        return None if value is None else str(value)
    return ",".join(map(str, value))


def device_of(name: str | None) -> str:
    """lm-eval's command names the first GPU where it is told nothing."""
    import torch

    if name is None or (name.startswith("cuda") and not torch.cuda.is_available()):
        return "auto"
    return name
