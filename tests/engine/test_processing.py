"""Generation settings that change logits: each row's own, as transformers applies them; the others refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.generate import run_padded
from lynx_exp.engine.requests.processing import settings_of, settings_of_model, settings_of_task, together
from lynx_exp.tasks.task_settings import Generation
from tests.engine.conftest import CONFIG

NEW = 12
SETTINGS = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "suppress_tokens": {"suppress_tokens": list(range(3, 200))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 250))},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(3, 150)]},
    "min_new_tokens": {"min_new_tokens": 9},
    "min_length": {"min_length": 18},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.8)},
    "sequence_bias": {"sequence_bias": [[[7], 8.0], [[8], 7.5]]},
    "two": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "suppress_tokens": [9, 10, 11]},
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Says its end often."""
    made = Engine.from_config("mixtral", CONFIG, seed=0)
    made.model.lm_head.weight.data[2] *= 6
    made.model.generation_config.eos_token_id = 2
    return made


@torch.inference_mode()
def theirs(engine: Engine, prompt: list[int], **settings) -> list[int]:
    ids = torch.tensor([prompt])
    kwargs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return engine.model.generate(ids, **kwargs, **settings)[0, len(prompt) :].tolist()


def decoded(engine: Engine, requests: list[Request], padded: bool) -> list[list[int]]:
    plan = BatchPlan.in_order(len(requests), 5)
    if padded:
        jobs = [engine.job(requests, plan)]
        stream = run_padded(
            engine.model, engine.routers, engine._stopper, jobs, max_rows=64, on_step=lambda tokens, rows: None
        )
        lanes = [lane for _, lane in stream]
    else:
        lanes = list(engine.run_lanes(requests, plan))
    return [tokens for lane in sorted(lanes, key=lambda lane: lane.lane) for tokens in lane.token_ids]


@pytest.mark.parametrize("padded", [False, True], ids=["slots", "padded"])
def test_every_row_has_its_own_settings_as_transformers_applies_them(engine, prompts, padded):
    requests, wanted, changed = [], [], set()
    for number, prompt in enumerate(prompts[:24]):
        name, given = [*SETTINGS.items(), ("none", {})][number % (len(SETTINGS) + 1)]
        settings = settings_of(given, "")
        requests.append(Request(prompt_ids=tuple(prompt), max_new_tokens=NEW, processing=settings))
        wanted.append(theirs(engine, prompt, **given))
        if wanted[-1] != theirs(engine, prompt):
            changed.add(name)
    assert decoded(engine, requests, padded) == wanted
    assert len(changed) > 7, "most settings change something here"


def test_drawing_comes_after_them(engine, prompts):
    from lynx_exp.engine import Sampling

    few = settings_of({"suppress_tokens": list(range(3, 290))}, "")
    request = Request(prompt_ids=tuple(prompts[0]), max_new_tokens=NEW, sampling=Sampling(seed=3), processing=few)
    (tokens,) = decoded(engine, [request], False)
    assert not set(tokens) & set(range(3, 290)) and len(set(tokens)) > 1


def test_the_models_own_are_applied_unless_the_task_says_otherwise(engine, prompts, monkeypatch):
    monkeypatch.setattr(engine.model, "generation_config", GenerationConfig(repetition_penalty=1.7, eos_token_id=2))
    assert engine.processing == (("repetition_penalty", 1.7),)
    run = engine.generate(prompts[:3], batch_size=3, max_new_tokens=NEW)
    assert run.token_ids == [theirs(engine, prompt) for prompt in prompts[:3]]
    both = together(engine.processing, settings_of({"repetition_penalty": 3.0, "suppress_tokens": [5]}, ""))
    assert both == (("repetition_penalty", 3.0), ("suppress_tokens", (5,)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 10}, r"task t: generation_kwargs\.num_beams=10: not followed; each token is the most likely"),
        ({"num_return_sequences": 2}, r"num_return_sequences=2: not followed"),
        ({"penalty_alpha": 0.6}, r"penalty_alpha=0\.6: not followed"),
        ({"temperature": 0.7, "min_p": 0.1}, r"min_p=0\.1: not followed where tokens are drawn"),
        ({"repetition_penalty": -1.0}, r"repetition_penalty=-1\.0: .*strictly positive"),
        ({"no_repeat_ngram_size": "x"}, r"no_repeat_ngram_size=x: "),
        ({"num_beans": 3}, r"task t: generation_kwargs\.num_beans=3: unknown"),
        ({"max_length": 40}, r"max_length=40: unknown, or not followed here"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        Generation.of(given, "task t: generation_kwargs.")
    assert "\n" not in str(caught.value)


def test_what_changes_nothing_is_taken():
    plain = Generation.of({"until": ["a"]})
    assert replace(plain, until=("a",)) == Generation.of(
        {
            "until": "a",
            "num_beams": 1,
            "use_cache": True,
            "min_p": 0.2,
            "repetition_penalty": 1.0,
            "early_stopping": True,
        }
    )
    assert settings_of_task({"length_penalty": 0.5, "no_repeat_ngram_size": 0}, "", sampled=False) == ()
    assert (
        settings_of_model(GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.8, eos_token_id=[1, 2]))
        == ()
    )
    assert settings_of_model(None) == ()
    with pytest.raises(ValueError, match=r"generation_config\.json: num_beams=4: not followed"):
        settings_of_model(GenerationConfig(num_beams=4))
