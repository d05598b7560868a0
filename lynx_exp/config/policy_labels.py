"""What a policy with its parameters is called."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from lynx_exp.config.folders import config_folder
from lynx_exp.config.policy_declarations import UNTOUCHED, policy_declaration
from lynx_exp.extensions import extension_file
from lynx_exp.wording import policy_label


def label_policy(
    name: str, parameters: Mapping[str, object], layers: str | None = None, match_active: float | None = None
) -> str:
    """See `Config.policy_label`."""
    if name in UNTOUCHED:  # it decides nothing, so that no parameter makes another of it
        return name
    declared = policy_declaration(name)
    turned = declared.knob if match_active is not None else None
    given = {key: value for key, value in parameters.items() if key != turned}
    usual = default_parameters(name) or {}
    return policy_label(name, given, usual, declared.hidden, match_active=match_active, layers=layers)


def default_parameters(policy: str) -> dict[str, object] | None:
    """A policy's parameters as conf/policy has them; None for a policy that it does not have."""
    usual = _usual_parameters(policy)
    return {key: value for key, value in usual.items() if key not in ("name", "match_active")} if usual else None


@cache
def _usual_parameters(policy: str) -> dict[str, object]:
    """What conf/policy says of a policy; empty where it has no file."""
    from omegaconf import OmegaConf

    file = config_folder() / "policy" / f"{policy}.yaml"
    if not file.is_file():
        added = extension_file("conf/policy", f"{policy}.yaml")
        if added is None:
            return {}
        file = added
    values = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
