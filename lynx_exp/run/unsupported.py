"""What of a cell cannot run on its model, as far as the model's configuration tells: found before any weights load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from lynx_exp.config import Config, ModelConfig
from lynx_exp.run.model_facts import ModelFacts

if TYPE_CHECKING:
    from lynx_exp.routing import Policy
    from lynx_exp.tasks import EvalTask
    from lynx_exp.tasks.mix import MixedTask

THREADS_PER_CORE = 4
FEWEST_THREADS = 32
"""That any machine is allowed."""


def check_threads(threads: int | None) -> None:
    """ValueError for threads that this machine would not survive, or only waste its time on."""
    most = max(FEWEST_THREADS, THREADS_PER_CORE * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise ValueError(
            f"threads={threads}: must be at most {most} on this machine of {os.cpu_count()} cores, or null"
        )


def check_match(target: float | None, facts: ModelFacts) -> None:
    """ValueError for a number of active experts that no batch of the model can have."""
    if target is not None and target > facts.num_experts:
        raise ValueError(
            f"policy.match_active={target:g}: must be at most {facts.num_experts}, the experts of a layer, or below 1 "
            "as a share of vanilla's"
        )


def longest_of(task: EvalTask | MixedTask) -> tuple[str, int]:
    """(its name, most tokens that a request of it generates)"""
    return task.name, max((request.max_new_tokens for request in task.requests), default=0)


def check_lengths(config: Config, longest: Sequence[tuple[str, int]], context: int | None) -> None:
    """ValueError for a response (`longest_of` each task), or a timed batch, that is longer than all of the model's
    positions."""
    if context is None:
        return
    for name, most in longest:
        if most >= context:
            raise ValueError(
                f"task.generation.max_gen_toks={most}: {name} leaves no room for a prompt in the model's "
                f"{context} positions; must be below {context}"
            )
    measure = config.measure
    if not measure.latency:
        return
    if measure.context is not None and measure.context + measure.new_tokens > context:
        raise ValueError(
            f"measure.context={measure.context}: with measure.new_tokens={measure.new_tokens} beyond the model's "
            f"{context} positions"
        )
    if measure.new_tokens >= context:
        raise ValueError(f"measure.new_tokens={measure.new_tokens}: must be below the model's {context} positions")


def check_parallel(model: ModelConfig, facts: ModelFacts) -> None:
    """ValueError for slices, or whole experts, of a model for which transformers has no plan of them."""
    if model.parallel is None or not facts.model_type:
        return
    from transformers import CONFIG_MAPPING, AutoConfig

    from lynx_exp.models.placement import refusal

    if facts.model_type in CONFIG_MAPPING:
        reason = refusal(AutoConfig.for_model(facts.model_type), model.parallel, 1)
        if reason is not None:
            raise ValueError(f"model.parallel={model.parallel}: {reason}; use model.device_map=auto")


def check_layers(policy: Policy, model: ModelConfig) -> None:
    """ValueError for parameters by layer that are more or fewer than the model's layers with a router."""
    from lynx_exp.routing import PerLayer

    if not isinstance(policy, PerLayer):
        return
    from lynx_exp.run.cost_estimate import random_json

    count = _router_layers(model.kind, model.id, model.revision, model.trust_remote_code, random_json(model))
    given = len(policy.policies)
    if count is not None and count != given:
        lists = f"policy {policy.name}: a list of {given} values" if given else policy.name
        raise ValueError(f"{lists}, one a layer: this model has {count} layers with a router; give {count}")


@cache
def _router_layers(kind: str, name: str, revision: str | None, trust: bool, fields: str) -> int | None:
    """Layers with a router of a model without its weights; None if it cannot be built so."""
    from lynx_exp.models.routers import router_classes
    from lynx_exp.run.cost_estimate import weightless

    model = weightless(kind, name, revision, trust, fields)
    if model is None:
        return None
    classes = router_classes(model)
    return sum(isinstance(module, classes) for module in model.modules()) or None
