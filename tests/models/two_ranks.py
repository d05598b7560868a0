"""Run by torchrun (and by its test in one process): what a saved model generates under each policy, as every rank has
it.

    torchrun --nproc-per-node 2 tests/models/two_ranks.py FOLDER none|tp|ep OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch.distributed as dist

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.models.rank_agreement import group_of
from lynx_exp.models.tiny import EXPERTS, TOP_K
from lynx_exp.routing import build_policy

POLICIES: dict[str, Any] = {
    "vanilla": None,
    "lynx": build_policy("lynx", alpha=0.7, beta=1),
    "oea": build_policy("oea", k0=1),
}


def prompts() -> list[list[int]]:
    rng = Random(0)
    return [[rng.randrange(3, 128) for _ in range(rng.randint(3, 12))] for _ in range(10)]


def generated(engine: Engine, parallel: str) -> dict[str, Any]:
    """Per policy: token ids, active experts of each lane, step and layer, and what each MoE block was told to run."""
    engine.generate(prompts()[:1], batch_size=1, max_new_tokens=2)  # the engine tries its decoder once
    found: dict[str, Any] = {"shard": list(shard_of(engine).shape)}
    for name, policy in POLICIES.items():
        given: list[Any] = []

        def note(_experts: Any, inputs: Any, given: list[Any] = given) -> None:
            given.append(inputs[1].tolist())

        hooks: list[Any] = [router.parent.experts.register_forward_pre_hook(note) for router in engine.routers]
        run = engine.generate(prompts(), batch_size=4, policy=policy, max_new_tokens=8, ignore_eos=True)
        for hook in hooks:
            hook.remove()
        lanes = {lane.lane: lane for lane in run.lanes}
        found[name] = {
            "tokens": [lanes[lane].token_ids for lane in sorted(lanes)],
            "active": [lanes[lane].active_experts for lane in sorted(lanes)],
            "routed": given,
        }
    if parallel != "none":
        found["refused"] = out_of_step(engine)
    return found


def shard_of(engine: Engine) -> Any:
    """The first layer's last matrices of the experts, as this rank holds them."""
    weights = engine.routers[0].parent.experts.down_proj
    return weights if not hasattr(weights, "to_local") else weights.to_local()


def out_of_step(engine: Engine) -> str:
    """What is said when the ranks select by different rules."""
    policy = POLICIES["lynx"] if dist.get_rank() == 0 else None
    asked = [Request(prompt_ids=tuple(ids[:3]), continuation_ids=tuple(ids)) for ids in prompts()]
    try:
        list(engine.score_lanes(asked, BatchPlan.in_order(len(asked), 4), policy))
    except RuntimeError as error:
        return str(error)
    return "nothing"


def main(folder: str, parallel: str, out: str) -> None:
    engine = Engine.from_pretrained(folder, device="cpu", parallel=None if parallel == "none" else parallel)
    assert (engine.num_experts, engine.top_k) == (EXPERTS, TOP_K)
    assert (group_of(engine.routers) is None) == (parallel == "none")
    found = generated(engine, parallel)
    ranks = [found]
    if parallel != "none":
        ranks = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(ranks, found)
    if parallel == "none" or dist.get_rank() == 0:
        Path(out).write_text(json.dumps(ranks))
    if parallel != "none":
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
