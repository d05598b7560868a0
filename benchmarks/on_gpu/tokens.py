"""The bundled model: tokens on this device against the CPU's, and of lanes side by side against each lane alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.on_gpu.cases import arguments, policy
from benchmarks.on_gpu.records import case, check
from lynx_exp import Engine
from lynx_exp.routing import Policy
from lynx_exp.tasks.mini import held_out

NAMED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("no_drop", {}), ("lynx", {}), ("coverage", {}), ("oea", {"k0": 1}), ("xshare", {"budget": 8}),
    ("lynx_v1_latency", {"keep_experts": 8}), ("top_k", {"k": 1}),
)  # fmt: skip
"""Without random_keep: its draws go by the number of the lane."""
MOST_APART = 0.02
"""Share of prompts whose tokens may differ between devices: sums in another order, and two logits that nearly agree."""
LANE = 16

Tokens = list[list[int]]


def generate_tokens(engine: Engine, prompts: Sequence[str], chosen: Policy | None, lane: int, tokens: int) -> Tokens:
    """The token ids of each response, all lanes side by side."""
    run = engine.generate(prompts, batch_size=lane, policy=chosen, max_new_tokens=tokens)
    return [list(each) for each in run.token_ids]


def alone(engine: Engine, prompts: Sequence[str], chosen: Policy | None, lane: int, tokens: int) -> Tokens:
    """Each lane in a run of its own."""
    starts = range(0, len(prompts), lane)
    return [each for at in starts for each in generate_tokens(engine, prompts[at : at + lane], chosen, lane, tokens)]


def main() -> None:
    given = arguments(__doc__).parse_args()
    count, tokens, lane = (4, 3, 2) if given.tiny else (64, 32, LANE)
    prompts = [item.prompt for item in held_out("mini_gsm8k")[:count]]
    few = 2 if given.tiny or given.quick else None
    chosen = {"vanilla": None} | {named[0]: policy(named) for named in NAMED[:few]}
    here = Engine.from_pretrained("lynx_tiny", device=given.device, dtype="float32")
    packed = {name: generate_tokens(here, prompts, each, lane, tokens) for name, each in chosen.items()}
    apart = [name for name, each in chosen.items() if alone(here, prompts, each, lane, tokens) != packed[name]]
    check("float32: lanes side by side say what each says alone", len(chosen), apart)
    if given.device == "cpu":
        return
    cpu = Engine.from_pretrained("lynx_tiny", device="cpu", dtype="float32")
    wrong = []
    for name, each in chosen.items():
        same = sum(a == b for a, b in zip(generate_tokens(cpu, prompts, each, lane, tokens), packed[name], strict=True))
        case("as on a CPU", policy=name, same=same, prompts=count)
        if count - same > MOST_APART * count:
            wrong.append(f"{name}: {count - same} of {count} prompts have other tokens")
    check("float32: tokens are the CPU's", len(chosen), wrong)
    half = Engine.from_pretrained("lynx_tiny", device=given.device, dtype="bfloat16")
    wrong = []
    for name, each in chosen.items():
        both = generate_tokens(half, prompts, each, lane, tokens), alone(half, prompts, each, lane, tokens)
        same, steps = sum(a == b for a, b in zip(*both, strict=True)), half.steps.record()
        case("exact in bfloat16", policy=name, same=same, prompts=count, steps=steps)
        if steps is not None and steps["exact"] and same < count:
            wrong.append(f"{name}: {count - same} of {count} prompts have other tokens in other company")
    check("bfloat16: tokens do not depend on company where the record says so", len(chosen), wrong)


if __name__ == "__main__":
    main()
