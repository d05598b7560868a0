"""Measure what each layer costs at each budget of a policy (`lynx_exp.routing.budgets`): passes over text in which one
layer alone runs the policy, beside a plain pass.

The tokens at one position are the rows of a lane, as for an alignment (`lynx_exp.prepare.align`), so `batch_size` is
the batch that the policy sees.

R sequences of a batch, N positions, T token rows (R times N), L layers, B budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lynx_exp.models import Attachment, Router, Rows, bind
from lynx_exp.prepare.align import rows_of_positions
from lynx_exp.routing import ModelShape, Policy
from lynx_exp.routing.budgets import Budgets, budget_digest, measured_budgets


@torch.inference_mode()
def measure_budgets(
    model: Any,
    routers: Sequence[Router],
    policy: Policy,
    batches: Sequence[tuple[Tensor, Tensor]],
    fingerprint: str,
    provenance: dict[str, str],
    on_step: Callable[[int, int], None],
    calibration: str | None = None,
) -> Budgets:
    """`batches`: (ids `[R, N]`, which of them are real). ValueError, by name, for a policy that the model cannot
    run."""
    shape = ModelShape(num_experts=routers[0].num_experts, top_k=routers[0].top_k, num_layers=len(routers))
    budgets = measured_budgets(policy, shape)
    policies = [bind(_at(policy, budget), routers, calibration) for budget in budgets]
    sum_LB = torch.zeros(len(routers), len(budgets), dtype=torch.float64)
    tokens, done, total = 0, 0, len(batches) * sum_LB.numel()
    for number, (ids_RN, real_RN) in enumerate(batches):
        vanilla_TV = _log_probabilities(model, ids_RN, real_RN)
        tokens += len(vanilla_TV)
        rows = rows_of_positions(number, real_RN)
        del rows["shared"]
        for layer in range(len(routers)):
            for at, each in enumerate(policies):
                attachment = Attachment(routers, each, layers=str(layer))
                attachment.rows = Rows(**rows)
                with attachment:
                    changed_TV = _log_probabilities(model, ids_RN, real_RN)
                sum_LB[layer, at] += (vanilla_TV.exp() * (vanilla_TV - changed_TV)).sum(-1).double().sum().cpu()
                done += 1
                on_step(done, total)
    return Budgets(
        policy=budget_digest(policy),
        fingerprint=fingerprint,
        budgets=budgets,
        divergence=(sum_LB / max(tokens, 1)).clamp_min(0),
        provenance=provenance,
    )


def _at(policy: Policy, budget: int) -> Policy:
    assert policy.knob is not None
    values: dict[str, Any] = {"per_layer": None, policy.knob.parameter: budget}
    return replace(policy, **values)


def _log_probabilities(model: Any, ids_RN: Tensor, real_RN: Tensor) -> Tensor:
    """Of the next token, for the rows that are real."""
    return model(input_ids=ids_RN, use_cache=False).logits[real_RN].float().log_softmax(-1)
