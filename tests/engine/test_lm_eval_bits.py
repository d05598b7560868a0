"""Choices scored as prefills at batch size 1: the bits of lm-eval's `hf` model at batch size 1, in fp32."""

from __future__ import annotations

from random import Random

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.tasks.mini import held_out
from tests.engine.conftest import CONFIG, VOCAB

Scored = list[tuple[float, bool]]
"""(log-likelihood, whether greedy decoding gives it) of each request."""


def scored(engine: Engine, requests: list[Request], plan: BatchPlan, policy: str | None = None) -> Scored:
    found = {}
    bound = build_policy(policy) if policy else None
    for lane in engine.score_lanes(requests, plan, bound, "both", scoring="prefill"):
        found.update(zip(lane.requests, zip(lane.logprobs, lane.greedy, strict=True), strict=True))
    return [found[number] for number in range(len(requests))]


@torch.no_grad()
def plain(engine: Engine, requests: list[Request]) -> Scored:
    """What lm-eval does with a request at batch size 1: `HFLM._loglikelihood_tokens`, without what surrounds it."""
    out = []
    for request in requests:
        asked = torch.tensor(request.continuation_ids)
        ids = torch.tensor([[*request.prompt_ids, *request.continuation_ids][:-1]])
        logprobs = engine.model(ids).logits.log_softmax(-1)[0, -len(asked) :]
        total = logprobs.gather(-1, asked[:, None])[:, 0].sum()
        out.append((float(total), bool((logprobs.argmax(-1) == asked).all())))
    return out


@pytest.mark.parametrize("experts", ["auto", "grouped_mm"])
def test_the_bundled_model_scores_as_in_lm_eval(experts: str) -> None:
    engine = Engine.from_pretrained("lynx_tiny", experts_implementation=experts)
    items = [item for task in ("truthfulqa", "gsm8k") for item in held_out(f"mini_{task}")[:8]]
    requests = [
        Request(
            prompt_ids=engine.encode(item.prompt), continuation_ids=engine.encode(f" {items[at - other].prompt}"[:60])
        )
        for at, item in enumerate(items)
        for other in (1, 2)
    ]
    theirs = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=1)
    asked = [(("", ""), list(request.prompt_ids), list(request.continuation_ids)) for request in requests]
    expected = theirs._loglikelihood_tokens(asked, disable_tqdm=True)
    plan = BatchPlan.static(len(requests), 1, seed=2)
    assert scored(engine, requests, plan) == expected == plain(engine, requests)
    assert scored(engine, requests, plan, "no_drop") == expected


@pytest.mark.parametrize("experts", ["auto", "eager", "grouped_mm", "per_expert"])
@pytest.mark.parametrize("width", [64, 200])
def test_any_lengths_score_as_in_lm_eval(experts: str, width: int) -> None:
    """Logits of few positions would have other bits than those of all."""
    sizes = {"hidden_size": width, "intermediate_size": width // 2 + 4, "num_hidden_layers": 2}
    engine = Engine.from_config("mixtral", CONFIG | sizes, seed=4, experts_implementation=experts)
    rng = Random(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCAB) for _ in range(count))

    requests = [Request(prompt_ids=tokens(rng.randint(1, 80)), continuation_ids=tokens(1 + n % 20)) for n in range(48)]
    alone = scored(engine, requests, BatchPlan.in_order(48, 1))
    assert alone == plain(engine, requests)
    together = scored(engine, requests, BatchPlan.in_order(48, 8))
    assert [total for total, _ in together] == pytest.approx([total for total, _ in alone], abs=1e-4)
