"""Configs that come to the same policy in one form, so that they are one cell, with one label.

`weights=reference` over a token's K best experts is `weights=original` to the bit, whether or not the router
renormalises (`lynx_exp.routing.ops.weigh`). What `match_active` turns may start anywhere.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from lynx_exp.config import Config, default_parameters, policy_declaration

if TYPE_CHECKING:
    from lynx_exp.routing import Policy


def in_one_form(config: Config, policy: Policy | None, top_k: int) -> tuple[Config, Policy | None]:
    """The config and its policy, for a model's K; themselves where there is nothing to bring to another form."""
    if policy is None:
        return config, policy
    known: dict[str, object] = {}
    knob = policy_declaration(config.policy_name).knob
    usual = default_parameters(config.policy_name) or {}
    if config.match_active is not None and knob in usual and config.policy.get(knob) != usual[knob]:
        known[knob] = usual[knob]
    weights = {}
    if config.policy.get("weights") == "reference" and config.policy.get("k2") in (None, top_k):
        weights = {"weights": "original", "k2": None}
    if not known and not weights:
        return config, policy
    settled = copy(config)  # its fields are checked
    settled.policy = config.policy | known | weights
    if weights:
        from lynx_exp.routing import build_policy

        policy = build_policy(config.policy_name, **config.policy_params | weights)
    return settled, policy
