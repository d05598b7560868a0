"""Requests are encoded as lm-eval's `hf` model encodes them; a request's noise is its own; a mix fills shared lanes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.config import GenerationConfig, TaskConfig
from lynx_exp.run.batch_plan import plan_of
from lynx_exp.run.encode import encode_requests, sampling_of
from lynx_exp.store.read import read_cells
from lynx_exp.tasks import TaskRequest, TaskSettings, load_task
from tests.run.mixtral import mixtral_tokenizer

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)


class Engine:
    """No model: what encoding asks of one."""

    context_length, feeds_last_token, vocabulary, processing = None, False, 10**9, ()
    drawing: dict[str, Any] = {}

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


@pytest.fixture(scope="module", params=["lynx_tiny", "mixtral"])
def tokenizer(request, tmp_path_factory):
    if request.param == "mixtral":
        return mixtral_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    from transformers import AutoTokenizer

    from lynx_exp.models import locate

    return AutoTokenizer.from_pretrained(locate("lynx_tiny"))


def lm_evals(tokenizer):
    """lm-eval's `hf` model without a model."""
    from lm_eval.models.huggingface import HFLM

    made = object.__new__(HFLM)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # it would set this
    made.tokenizer, made.backend, made.add_bos_token = tokenizer, "causal", None
    made.custom_prefix_token_id = None
    return made


def fake_task(kind: str, requests: list[TaskRequest]) -> Any:
    return SimpleNamespace(name="t", kind=kind, requests=tuple(requests), fillers=())


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS.filter(bool)), min_size=1, max_size=4))
def test_choices_are_encoded_as_lm_eval_does(tokenizer, pairs):
    pairs = [("Q: why\nA:", " because"), ("ends in space ", "so"), *pairs]
    pairs = [(prompt, more) for prompt, more in pairs if prompt.strip()]
    task = fake_task("choice", [TaskRequest(doc_id=0, prompt=p, continuation=c) for p, c in pairs])
    theirs = [lm_evals(tokenizer)._encode_pair(prompt, more) for prompt, more in pairs]
    ours = encode_requests(task, Engine(tokenizer))
    assert [(list(r.prompt_ids), list(r.continuation_ids)) for r in ours] == theirs


@settings(deadline=None, max_examples=60)
@given(prompts=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=4))
def test_prompts_are_encoded_as_lm_eval_does(tokenizer, prompts):
    prompts = ["Question: 1 + 1?\nAnswer:", f"{tokenizer.bos_token}already begun", *prompts]
    task = fake_task("generate", [TaskRequest(doc_id=0, prompt=p, max_new_tokens=1, until=("\n",)) for p in prompts])
    theirs = [lm_evals(tokenizer).tok_batch_encode([prompt])[0][0].tolist() for prompt in prompts]
    ours = encode_requests(task, Engine(tokenizer))
    assert [list(request.prompt_ids) for request in ours] == theirs
    assert all(ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id for ids in theirs[:2])
    assert {request.stop for request in ours} == {("\n", tokenizer.eos_token)}


def test_a_choice_without_a_prompt_stands_behind_bos():
    task = fake_task("choice", [TaskRequest(doc_id=0, prompt="", continuation="yes")])
    plain = SimpleNamespace(bos_token_id=7, eos_token_id=2)
    ids = {"": [], "yes": [4, 5]}
    tokenizer = type(
        "T", (), vars(plain) | {"__call__": lambda self, texts, **_: SimpleNamespace(input_ids=[ids[t] for t in texts])}
    )()
    (request,) = encode_requests(task, Engine(tokenizer))
    assert (request.prompt_ids, request.continuation_ids) == ((7,), (4, 5))


def test_a_requests_noise_is_its_own():
    asked = TaskRequest(doc_id=3, prompt="", temperature=0.5, top_p=0.9, top_k=4, subtask="a")
    made = sampling_of(asked, 0, 0)
    assert made is not None and (made.temperature, made.top_p, made.top_k) == (0.5, 0.9, 4)
    others = [
        sampling_of(asked, 1, 0),
        sampling_of(asked, 0, 1),
        sampling_of(replace(asked, doc_id=4), 0, 0),
        sampling_of(replace(asked, subtask="b"), 0, 0),
    ]
    assert len({each.seed for each in [made, *others] if each is not None}) == 5
    assert sampling_of(asked, 0, 0) == made and sampling_of(replace(asked, temperature=0.0), 0, 0) is None


def cell(**more: Any) -> Any:
    config = SimpleNamespace(
        batch_size=4,
        batching="static",
        waves=2,
        tail="drain",
        choices="spread",
        order_seed=0,
        task=TaskConfig(name="mix", subtasks=["a", "b"], weights=[1, 1]),
    )
    for name, value in more.items():
        setattr(config, name, value)
    return SimpleNamespace(config=config)


REQUESTS = [TaskRequest(doc_id=n, prompt="x", subtask="ab"[n >= 10]) for n in range(20)]


@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_a_shuffled_mix_shares_lanes_and_a_separate_one_does_not(batching):
    task = fake_task("generate", REQUESTS)
    lanes = {}
    for mixing in ("shuffled", "separate"):
        asked = TaskConfig(name="mix", subtasks=["a", "b"], weights=[1.0, 1.0], mixing=mixing)
        plan = plan_of(cell(task=asked, batching=batching), task)
        assert sorted(number for lane in plan.lanes for number in lane) == list(range(20))
        assert plan.slots == (4 if batching == "continuous" else None)
        lanes[mixing] = [{REQUESTS[number].subtask for number in lane} for lane in plan.lanes]
    assert {"a", "b"} in lanes["shuffled"] and all(len(lane) == 1 for lane in lanes["separate"])


@pytest.fixture
def mixed(lab, tmp_path):
    """Runs a mix of two mini tasks on the bundled model: (record, mixing)."""
    from lynx_exp.run.run_cells import run_cells
    from tests.run.real_cells import bundled

    def run(mixing: str, **more: Any) -> Any:
        task = TaskConfig(name="mix", subtasks=["mini_gsm8k", "mini_wmt16"], weights=[2.0, 1.0], mixing=mixing, **more)
        report = run_cells([bundled(tmp_path, task=task, limit=8, batch_size=4)])
        return read_cells(report.outcomes[0].folder)[0]

    return run


def test_a_mix_from_end_to_end(mixed):
    record = mixed("shuffled")
    rows = [row for row in record.responses().to_pylist() if not row["filler"]]
    assert [row["subtask"] for row in rows] == ["mini_gsm8k"] * 8 + ["mini_wmt16"] * 4
    assert [row["doc_id"] for row in rows] == [*range(8), *range(4)]
    headlines = {m["subtask"]: m["metric"] for m in record.metrics["metrics"] if m["headline"]}
    assert headlines == {"mini_gsm8k": "exact_match", "mini_wmt16": "bleu"}
    samples = record.samples().to_pylist()
    for sample in samples:
        row = rows[sample["request"]]
        assert (sample["response"], sample["slot"], sample["lane"]) == (row["response"], row["slot"], row["lane"])
        assert (sample["subtask"], sample["doc_id"]) == (row["subtask"], row["doc_id"])
    assert {row["subtask"] for row in record.steps().to_pylist()} == {"mix"}
    assert set(record.metrics["by_subtask"]) == {"mix", "mini_gsm8k", "mini_wmt16"}
    apart = mixed("separate")
    assert apart.info["mixing"] == "separate" and apart.info["cell_id"] != record.info["cell_id"]
    lanes = {row["lane"]: set() for row in apart.responses().to_pylist()}
    for row in apart.responses().to_pylist():
        lanes[row["lane"]].add(row["subtask"])
    assert all(len(tasks) == 1 for tasks in lanes.values())


def test_sampled_responses_repeat_and_follow_the_seed(tmp_path):
    from lynx_exp.run.run_cells import run_cells
    from tests.run.real_cells import bundled

    def responses(folder: str, **more: Any) -> list[str]:
        task = TaskConfig(
            name="t", subtasks=["mini_wmt16"], repeats=2, generation=GenerationConfig(temperature=1.5, max_gen_toks=8)
        )
        report = run_cells([bundled(tmp_path / folder, task=task, limit=4, **more)])
        return [row["response"] for row in read_cells(report.outcomes[0].folder)[0].responses().to_pylist()]

    first = responses("a", batch_size=2)
    assert len(first) == 8 and len(set(first)) > 4
    assert responses("b", batch_size=8) == first, "vanilla: nothing of a request depends on its batch-mates"
    assert responses("c", batch_size=2, seed=1) != first


def test_greedy_tasks_ask_for_no_noise():
    task = load_task("mini_gsm8k", limit=2, settings=TaskSettings())
    assert {request.temperature for request in task.requests} == {0.0}


def test_the_models_own_drawing_is_that_of_tasks_that_say_nothing(tokenizer):
    """generation_config.json, as transformers reads it for lm-eval's `hf` model."""
    engine: Any = Engine(tokenizer)
    engine.drawing = {"top_p": 0.8, "top_k": 20}
    plain = TaskRequest(doc_id=0, prompt="Which?", max_new_tokens=4, temperature=0.7)
    own = replace(plain, top_p=1.0, top_k=3)
    made = encode_requests(fake_task("generate", [plain, own, replace(plain, temperature=0.0)]), engine)
    drawn = [request.sampling for request in made]
    assert [sampling and (sampling.top_p, sampling.top_k) for sampling in drawn] == [(0.8, 20), (1.0, 3), None]
    engine.drawing = {"min_p": 0.1}
    assert encode_requests(fake_task("generate", [replace(plain, temperature=0.0)]), engine)[0].sampling is None
    with pytest.raises(ValueError, match=r"generation_config\.json: min_p=0\.1: not followed where tokens are drawn"):
        encode_requests(fake_task("generate", [plain]), engine)


def test_the_last_token_of_a_choice_needs_no_position(tokenizer):
    """As lm-eval's `hf` model, which scores choices of the context and one token more."""
    engine: Any = Engine(tokenizer)
    asked = [TaskRequest(doc_id=0, prompt="Which one is it? Is it", continuation=" the first one, or the other?")]
    (whole,) = encode_requests(fake_task("choice", asked), engine)
    tokens = len(whole.prompt_ids) + len(whole.continuation_ids)
    for context, cut in ((tokens, 0), (tokens - 1, 0), (tokens - 2, 1), (tokens - 3, 2)):
        engine.context_length = context
        (left,) = encode_requests(fake_task("choice", asked), engine, "left")
        theirs = (list(whole.prompt_ids) + list(whole.continuation_ids))[-(context + 1) :]
        assert [*left.prompt_ids, *left.continuation_ids] == theirs
        assert left.continuation_ids == whole.continuation_ids and left.prompt_ids == whole.prompt_ids[cut:]
        if cut:
            with pytest.raises(ValueError, match=rf"t: request 0: .* do not fit the model's {context} positions"):
                encode_requests(fake_task("choice", asked), engine)
    engine.context_length = len(whole.continuation_ids) - 1
    with pytest.raises(ValueError, match="do not fit"):
        encode_requests(fake_task("choice", asked), engine, "left")


@pytest.mark.parametrize("kind", ["generate", "choice"])
def test_a_tokenizer_larger_than_the_embedding_is_said_in_one_line(kind, tokenizer):
    engine: Any = Engine(tokenizer)
    engine.vocabulary = 3
    asked = [TaskRequest(doc_id=0, prompt="Which?", continuation=" this", max_new_tokens=4)]
    with pytest.raises(ValueError, match=r"t: request 0: .* token \d+, and the model's embedding 3 rows: the"):
        encode_requests(fake_task(kind, asked), engine)
