"""The bundled model: decoding equals transformers', packing changes nothing, scores are those of its card."""

from __future__ import annotations

import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request, Run
from lynx_exp.routing import policy_names
from lynx_exp.tasks import load_task
from lynx_exp.tasks.mini import held_out

NEW_TOKENS = 16


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return Engine.from_pretrained("lynx_tiny")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """64 prompts, the four tasks mixed."""
    of_task = [[item.prompt for item in held_out(f"mini_{t}")] for t in ("gsm8k", "humaneval", "truthfulqa", "wmt16")]
    return [prompt for four in zip(*of_task, strict=True) for prompt in four][:64]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_vanilla_equals_transformers_generate(tiny: Engine, prompts: list[str], batch_size: int) -> None:
    ours = tiny.generate(prompts, batch_size=batch_size, max_new_tokens=NEW_TOKENS)
    theirs = []
    for start in range(0, 64, batch_size):
        batch = tiny.tokenizer(prompts[start : start + batch_size], return_tensors="pt", padding=True)
        out = tiny.model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        theirs += out[:, batch["input_ids"].shape[1] :].tolist()
    eos = tiny.tokenizer.eos_token_id
    cut = [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in theirs]
    assert ours.token_ids == cut


def packed_and_alone(engine: Engine, prompts: list[str], name: str) -> tuple[Run, Run]:
    policy = build_policy(name)
    engine.max_rows = 64
    packed = engine.generate(prompts, batch_size=4, policy=policy, max_new_tokens=NEW_TOKENS)
    engine.max_rows = 1
    alone = engine.generate(prompts, batch_size=4, policy=policy, max_new_tokens=NEW_TOKENS)
    engine.max_rows = 64
    return packed, alone


@pytest.mark.parametrize("name", ["lynx", "lynx_v1_latency"])
def test_16_lanes_of_4_packed_equal_the_lanes_alone(tiny: Engine, prompts: list[str], name: str) -> None:
    packed, alone = packed_and_alone(tiny, prompts, name)
    assert packed.token_ids == alone.token_ids
    assert packed.active_experts == alone.active_experts
    one_lane = tiny.generate(prompts, batch_size=64, policy=build_policy(name), max_new_tokens=NEW_TOKENS)
    assert one_lane.token_ids != packed.token_ids, "ignoring the lanes must change tokens, or this test shows nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", policy_names())
def test_packed_equals_alone_for_every_policy(tiny: Engine, prompts: list[str], name: str) -> None:
    packed, alone = packed_and_alone(tiny, prompts, name)
    assert packed.token_ids == alone.token_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    "task,least,most",
    [
        ("mini_gsm8k", 0.85, 1.0),
        ("mini_humaneval", 0.88, 1.0),
        ("mini_truthfulqa_gen", 0.80, 0.97),
        ("mini_wmt16", 85.0, 100.0),
    ],
)
def test_held_out_scores(tiny: Engine, task: str, least: float, most: float) -> None:
    """All 400 held-out items, greedy, vanilla: good enough to lose something, not saturated where it need not be."""
    loaded = load_task(task)
    requests = [
        Request(prompt_ids=tiny.encode(r.prompt), max_new_tokens=r.max_new_tokens, stop=r.until)
        for r in loaded.requests
    ]
    run = Run(list(tiny.run_lanes(requests, BatchPlan.in_order(len(requests), 16))))
    assert least <= loaded.score(run.texts).headline.value <= most


def test_the_model_file_is_small_and_half_precision(tiny: Engine) -> None:
    folder = tiny.model.name_or_path
    from pathlib import Path

    from safetensors import safe_open

    weights = Path(folder) / "model.safetensors"
    assert weights.stat().st_size <= 55e6
    with safe_open(weights, "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118
