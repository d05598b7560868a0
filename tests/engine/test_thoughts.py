"""Where a thought ends: what is left is lm-eval's answer, and no stop string counts before it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.utils import postprocess_generated_text
from tokenizers import AddedToken

from lynx_exp.engine import Engine
from lynx_exp.engine.decoding.lane import Row
from lynx_exp.engine.requests.plan import Request
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.engine.requests.thoughts import ThinkEnd, think_end_of
from tests.engine.chain import STOCK_SPECIAL, TOKENIZERS, chain_model

MARKER = "</think>"
STOPS = ("Q:", " on", "\n")


@cache
def tokenizer(kind: str, *, special: bool = False):
    made = TOKENIZERS[kind]()
    made.add_tokens([AddedToken(MARKER, special=special)], special_tokens=special)
    return made


def spelt_out(made) -> list[int]:
    """The marker by letters, where the vocabulary has them."""
    vocabulary = made.get_vocab()
    pieces = [vocabulary.get(letter, vocabulary.get(f"<0x{ord(letter):02X}>")) for letter in MARKER]
    return [piece for piece in pieces if piece is not None] if None not in pieces else []


def pieces_of(made) -> st.SearchStrategy[list[int]]:
    vocabulary = made.get_vocab()
    names = (STOCK_SPECIAL, ":", "\n", "Ċ", "the", "on", "Ġon", "▁on", "##on", "Q", "▁", "Ġ", "cat")
    single = [[vocabulary[name]] for name in names if name in vocabulary]
    marks = [[vocabulary[MARKER]], *([spelt_out(made)] if spelt_out(made) else [])]
    parts = st.lists(st.sampled_from([*single, *marks, spelt_out(made)[:3]]), min_size=1, max_size=12)
    return parts.map(lambda found: [token for part in found for token in part]).filter(bool)


@st.composite
def responses(draw):
    kind = draw(st.sampled_from(sorted(TOKENIZERS)))
    made = tokenizer(kind)
    number = draw(st.booleans())
    marker = str(made.get_vocab()[MARKER]) if number else MARKER
    return made, think_end_of(made, marker), draw(pieces_of(made))


def theirs(made, tokens: list[int], end: ThinkEnd) -> str:
    """What lm-eval's models make of a response: a marker is a text, or the number of a token."""
    if end.ids:
        at = max((i for i, token in enumerate(tokens) if token == end.ids[0]), default=-1)
        text = made.decode(tokens[at + 1 :], skip_special_tokens=True).lstrip()
        return postprocess_generated_text(text, list(STOPS), None)
    return postprocess_generated_text(made.decode(tokens, skip_special_tokens=True), list(STOPS), end.text)


@settings(deadline=None, max_examples=100)
@given(responses())
def test_the_answer_is_lm_evals(response):
    made, end, tokens = response
    stopper = Stopper(None, made)
    answer = stopper.answer(tokens, STOPS, end, "eos")
    assert answer.text == theirs(made, tokens, end)
    assert (answer.thought == "closed") == (answer.thought_tokens > 0)
    # the thought is the shortest beginning that leaves no marker behind it
    rest = tokens[answer.thought_tokens :]
    if answer.thought == "closed":
        assert (
            stopper.answer(tokens[: answer.thought_tokens - 1], STOPS, end, "eos").thought_tokens
            < answer.thought_tokens
        )
    assert (end.ids[0] not in rest) if end.ids else MARKER not in made.decode(rest, skip_special_tokens=True)


def first_end(made, tokens: list[int], end: ThinkEnd) -> int | None:
    """Tokens after which the answer shows a stop string, tried one by one over the whole text."""
    for count in range(1, len(tokens) + 1):
        said = tokens[:count]
        closed = end.ids[0] in said if end.ids else MARKER in made.decode(said, skip_special_tokens=True)
        if end.opened and not closed:
            continue
        for skip in (True, False):
            last = max((at for at, token in enumerate(said) if token in end.ids), default=-1)
            text = made.decode(said[last + 1 :], skip_special_tokens=skip)
            answer = text if end.ids else text.split(MARKER)[-1]
            if any(string in answer.lstrip() for string in STOPS):
                return count
    return None


@settings(deadline=None, max_examples=100)
@given(responses(), st.booleans())
def test_a_response_ends_at_the_first_stop_behind_its_thought(response, opened):
    made, end, tokens = response
    end = replace(end, opened=opened)
    asked = Request(prompt_ids=(1,), max_new_tokens=len(tokens), stop=STOPS, think_end=end)
    row = Row(asked, 0, 0, Stopper(None, made))
    for token in tokens:
        row.take(token)
        if row.finish is not None:
            break
    wanted = first_end(made, tokens, end)
    assert (row.finish, len(row.tokens)) == ("length", len(tokens)) if wanted is None else ("stop", wanted)
    if Stopper(None, made).answer(tokens, (), end, "eos").thought_tokens <= len(row.tokens):
        assert row.answer().text == theirs(made, tokens, end)  # whatever would have followed


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_a_marker_of_special_tokens_is_found_among_the_tokens(kind):
    made = tokenizer(kind, special=True)
    end, number = think_end_of(made, MARKER), made.get_vocab()[MARKER]
    assert end.ids == (number,) and think_end_of(made, str(number)).ids == (number,)
    vocabulary = made.get_vocab()
    said = [vocabulary[word] for word in ("the", "cat")]
    answer = Stopper(None, made).answer([*said, number, said[1]], (), end, "eos")
    assert (answer.text.strip(), answer.thought, answer.thought_tokens) == ("cat", "closed", 3)


def test_thoughts_that_the_length_cut_are_told_from_answers_without_any():
    made = tokenizer("byte_level")
    stopper, end, said = Stopper(None, made), think_end_of(made, MARKER), [made.get_vocab()["the"]] * 4
    assert stopper.answer(said, (), end, "length")[1:] == ("cut", 4)
    assert stopper.answer(said, (), end, "eos")[1:] == ("none", 0)
    assert stopper.answer(said, (), ThinkEnd(text=MARKER, opened=False), "length")[1:] == ("none", 0)
    assert stopper.answer(said, (), None, "length")[1:] == (None, None)


def test_the_text_of_eos_ends_a_thought_too():
    made = tokenizer("byte_level")
    vocabulary = made.get_vocab()
    spelt = [vocabulary[letter] for letter in "</s"]
    stopper = Stopper(None, made)
    assert not stopper.hit_thinking(
        [vocabulary["the"], vocabulary["Ġon"]], (" on", "</s>"), ThinkEnd(text=MARKER), None
    )
    assert stopper.hit_thinking([*spelt, vocabulary[">"]], (" on", "</s>"), ThinkEnd(text=MARKER), None)


def test_markers_that_are_none_are_refused_in_one_line():
    words, letters = tokenizer("word_piece"), tokenizer("byte_level")
    with pytest.raises(ValueError, match=r"^task\.think_end='</done>': is no sequence of the tokenizer's tokens; give"):
        think_end_of(words, "</done>", name="task.think_end")
    with pytest.raises(ValueError, match=r"^think_end=9999: no token of the tokenizer, whose last is \d+$"):
        think_end_of(letters, "9999")


def test_an_engine_hands_thought_and_answer_back_apart():
    made = tokenizer("byte_level")
    vocabulary = made.get_vocab()
    said = [vocabulary[piece] for piece in ("the", "Ġcat", "Ġon", MARKER, "Ċ", "Ġsat", "Ġthe", "Q", ":")]
    engine = Engine(chain_model(said, 1 + max(vocabulary.values())), made)
    end = think_end_of(made, MARKER)
    asked = [Request(prompt_ids=(said[0],), max_new_tokens=12, stop=("on", "Q:", "\n"), think_end=end)]
    lane = next(iter(engine.run_lanes(asked, _plan())))
    assert lane.texts == ["sat the"] and lane.finish_reasons == ["stop"]
    assert (lane.thoughts, lane.thought_tokens) == (["closed"], [3])
    cut = [Request(prompt_ids=(said[0],), max_new_tokens=2, stop=("on",), think_end=end)]
    lane = next(iter(engine.run_lanes(cut, _plan())))
    assert (lane.texts, lane.thoughts, lane.thought_tokens) == (["cat "], ["cut"], [2])


def _plan():
    from lynx_exp.engine import BatchPlan

    return BatchPlan.in_order(1, 1)
