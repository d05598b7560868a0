"""What a policy's selection alone costs, on the routings of a real decode step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter

import torch
from transformers import PreTrainedModel

from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.models import Attachment, Router
from lynx_exp.routing import Policy, RouterRule, Routing, StepContext

_PASSES = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class _RoutingRecorder(Policy):
    """Changes nothing and remembers what it saw."""

    recorded: list[tuple[Routing, StepContext, RouterRule]] = field(default_factory=list)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        self.recorded.append((routing, step, rule))
        return routing


@torch.inference_mode()
def selection_time(
    model: PreTrainedModel, routers: Sequence[Router], policy: Policy, prompts: Sequence[Sequence[int]]
) -> float:
    """Microseconds that `policy` (bound) takes per layer for one decode step of a lane of `prompts`: mean over layers,
    median over passes. Caches are warm, as they are not between the layers of a real step."""
    listener = _RoutingRecorder()
    batch = Batch(model, prompts, [0] * len(prompts), [0], room=1)
    with Attachment(routers, listener) as attachment:
        attachment.rows = batch.prefill_rows()
        token_R = batch.prefill().argmax(-1)
        # prompts were routed too; only the decode step is wanted
        listener.recorded.clear()
        attachment.rows = batch.step_rows(torch.ones_like(token_R, dtype=torch.bool))
        batch.step(token_R)
    times = []
    for _ in range(_PASSES):
        shared: dict[str, object] = {}
        # new objects for each pass: a routing remembers views of itself that policies have asked for
        fresh = [
            (Routing(logits=r.logits, experts=r.experts, weights=r.weights), replace(step, shared=shared), rule)
            for r, step, rule in listener.recorded
        ]
        _wait(token_R)
        start = perf_counter()
        for routing, step, rule in fresh:
            policy(routing, step, rule)
        _wait(token_R)
        times.append((perf_counter() - start) / len(fresh) * 1e6)
    return median(times)


def _wait(tensor: torch.Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
