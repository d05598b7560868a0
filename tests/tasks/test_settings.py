"""Generation settings are read as lm-eval reads them; chat templates are applied as its `hf` model does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.engine.requests.thoughts import ThinkEnd
from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.chat import ChatTemplate
from lynx_exp.tasks.mix import mix, shares
from lynx_exp.tasks.task_settings import Generation
from lynx_exp.tasks.thinking import find_think_end, thinking_flag
from tests.tasks import real

KWARGS = st.fixed_dictionaries(
    {},
    optional={
        "until": st.sampled_from(["\n", ["a", "b"], []]),
        "max_gen_toks": st.integers(1, 9),
        "max_new_tokens": st.integers(1, 9),
        "max_tokens": st.integers(1, 9),
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0.0, 0.5, 1.0]),
        "top_p": st.sampled_from([0.9, 1.0]),
        "top_k": st.sampled_from([5, 50]),
    },
)


@given(KWARGS)
def test_generation_settings_are_lm_evals(kwargs):
    from lm_eval.models.utils import normalize_gen_kwargs

    theirs = normalize_gen_kwargs(dict(kwargs))
    ours = Generation.of(kwargs)
    assert ours.max_new_tokens == theirs["max_gen_toks"]
    assert list(ours.until) == theirs.get("until", [])
    if "temperature" in kwargs or not kwargs.get("do_sample"):
        assert ours.temperature == (theirs["temperature"] if theirs["do_sample"] else 0.0)
    else:  # transformers samples at 1 where nobody says
        assert ours.temperature == 1.0


def test_settings_reach_every_request(tmp_path):
    real.write(tmp_path, ["gsm8k", "truthfulqa_mc1"])
    settings = TaskSettings(
        data=str(tmp_path), temperature=0.7, top_p=0.9, top_k=40, max_gen_toks=12, until=("X",), repeats=3
    )
    task = load_task("gsm8k", limit=2, settings=settings)
    assert len(task.requests) == 6 and [request.doc_id for request in task.requests] == [0, 0, 0, 1, 1, 1]
    asked = {(r.temperature, r.top_p, r.top_k, r.max_new_tokens, r.until) for r in task.requests}
    assert asked == {(0.7, 0.9, 40, 12, ("X",))}
    right = f"#### {real.gsm8k()[1]['answer'].rpartition('#### ')[2]}"
    scores = task.score(["no", "no", "no", right, "no", right])
    assert [sample.score for sample in scores.samples] == pytest.approx([0.0, 2 / 3]), "avg@3: each response is scored"
    assert [sample.request for sample in scores.samples] == [0, 3]
    choices = load_task("truthfulqa_mc1", limit=1, settings=settings)
    assert {request.max_new_tokens for request in choices.requests} == {0}


def tokenizer(template: str):
    from transformers import AutoTokenizer

    from lynx_exp.models import locate

    made = AutoTokenizer.from_pretrained(locate("lynx_tiny"))
    made.chat_template = template
    return made


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS


@pytest.mark.parametrize("template", [TURNS, NO_SYSTEM])
@pytest.mark.parametrize("multiturn", [True, False])
def test_chat_prompts_are_those_of_lm_evals_own_model(template, multiturn, tmp_path):
    from lm_eval.models.huggingface import HFLM

    real.write(tmp_path, ["gsm8k"])
    tok = tokenizer(template)
    settings = TaskSettings(
        data=str(tmp_path),
        num_fewshot=2,
        system_instruction="Be brief.",
        chat=ChatTemplate.of(tok),
        fewshot_as_multiturn=multiturn,
    )
    task = load_task("gsm8k", limit=3, settings=settings)
    theirs = SimpleNamespace(tokenizer=tok, chat_template_args={})
    inner = task.lm_eval_task
    inner.set_fewshot_seed(1234)
    inner.build_all_requests(
        limit=3,
        system_instruction="Be brief.",
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        chat_template=lambda turns, **more: HFLM.apply_chat_template(theirs, turns, **more),
    )
    assert [request.prompt for request in task.requests] == [instance.args[0] for instance in inner.instances]
    first = task.requests[0].prompt
    assert first.endswith("<bot>") and ("<system>Be brief." in first) == (template == TURNS)
    assert first.count("<user>") == (3 if multiturn else 1)


def test_chat_templates_are_equal_by_what_they_say():
    one, same, other = (ChatTemplate.of(tokenizer(text)) for text in (TURNS, TURNS, NO_SYSTEM))
    assert one == same != other and hash(one) == hash(same)
    assert one != ChatTemplate.of(tokenizer(TURNS), {"enable_thinking": False})
    with pytest.raises(ValueError, match="the model's tokenizer has no chat template"):
        ChatTemplate.of(SimpleNamespace(chat_template=None))


def load(number: int, limit: int | None):
    return load_task(["mini_gsm8k", "mini_wmt16"][number], limit=limit)


def test_a_mix_holds_its_tasks_in_their_shares():
    task = mix("mix", load, [2, 1], 6)
    assert [member.name for member in task.members] == ["mini_gsm8k", "mini_wmt16"]
    assert [(r.subtask, r.doc_id) for r in task.requests] == [("mini_gsm8k", n) for n in range(6)] + [
        ("mini_wmt16", n) for n in range(3)
    ]
    apart = [load(0, 6), load(1, 3)]
    answers = [f"{n} #### {n}" for n in range(6)] + ["ein Hund"] * 3
    scores = task.score(answers)
    alone = [apart[0].score(answers[:6]), apart[1].score(answers[6:])]
    assert scores.metrics == [metric for each in alone for metric in each.metrics]
    assert [sample.scores for sample in scores.samples] == [s.scores for each in alone for s in each.samples]
    assert [sample.request for sample in scores.samples] == list(range(9))


def test_a_whole_mix_is_as_long_as_its_shortest_share_allows():
    counted = {0: 10, 1: 4}

    def fake(number: int, limit: int | None):
        docs = counted[number] if limit is None else min(limit, counted[number])
        requests = tuple(SimpleNamespace(doc_id=doc) for doc in range(docs))
        return SimpleNamespace(
            name=str(number), kind="generate", runs_code=False, data_digest=f"{docs}", requests=requests
        )

    assert len(mix("mix", fake, [1, 1], None).requests) == 8
    assert len(mix("mix", fake, [2, 1], None).requests) == 8 + 4
    assert len(mix("mix", fake, [3, 1], None).requests) == 10 + 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 100))
def test_shares(weights, documents):
    counts = shares(weights, documents)
    assert max(counts) == documents and min(counts) >= 1
    assert all(abs(c - documents * w / max(weights)) <= 1 for c, w in zip(counts, weights, strict=True))


def test_choices_do_not_mix():
    with pytest.raises(ValueError, match="mini_truthfulqa_mc1 scores choices; a mix takes tasks that generate"):
        mix("mix", lambda _, limit: load_task("mini_truthfulqa_mc1", limit=limit), [1], 3)


def thinker(template: str | None, *added: str):
    made = tokenizer(template)
    made.add_tokens(list(added))
    return made


@pytest.mark.parametrize(
    ("template", "added", "marker"),
    [
        ("{% if enable_thinking %}<think>{% endif %}{{ x.split('</think>') }}", (), "</think>"),
        (TURNS, ("</think>",), "</think>"),
        (TURNS, ("[/THINK]",), "[/THINK]"),
        ("<|channel>thought<channel|>", (), "<channel|>"),
        ({"default": TURNS, "thinks": "</seed:think>"}, (), "</seed:think>"),
    ],
)
def test_auto_finds_what_ends_a_thought_in_template_or_tokens(template, added, marker):
    assert find_think_end(thinker(template, *added), "auto", opened=True).text == marker


def test_a_tokenizer_that_knows_no_thoughts_is_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"^task\.think_end=auto: neither the added tokens nor the chat template .*null$"
    ):
        find_think_end(thinker(TURNS), "auto", opened=True)


@pytest.mark.parametrize("flag", ["enable_thinking", "thinking"])
def test_the_flag_of_thinking_is_the_templates_own(flag):
    assert thinking_flag(thinker("{% if " + flag + " %}a{% endif %}")) == flag


@pytest.mark.parametrize(("template", "hint"), [(TURNS, ""), ("{{ reasoning_effort }}", "; it takes reasoning_effort")])
def test_a_template_without_the_flag_is_refused_in_one_line(template, hint):
    with pytest.raises(ValueError, match=rf"^task\.thinking: the chat template of .* no flag for it \(.*\){hint}"):
        thinking_flag(thinker(template))


def test_requests_that_generate_know_what_ends_their_thoughts(tmp_path):
    end = ThinkEnd(text="</think>")
    real.write(tmp_path, ["gsm8k"])
    plain = load_task("gsm8k", limit=2, settings=TaskSettings(data=str(tmp_path)))
    task = load_task("gsm8k", limit=2, settings=TaskSettings(data=str(tmp_path), think_end=end))
    assert {request.think_end for request in task.requests} == {end}
    assert plain.data_digest != task.data_digest
    with pytest.raises(ValueError, match=r"^task\.thinking=true: mini_truthfulqa_mc1 asks for likelihoods of choices"):
        load_task("mini_truthfulqa_mc1", limit=2, settings=TaskSettings(thinking=True, think_end=end))
