"""Where a response ends: at the token with which its text shows a stop string, whatever the tokenizer does."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.engine import Engine
from lynx_exp.engine.requests.stopping import Stopper
from tests.engine.chain import STOCK_SPECIAL, TOKENIZERS, chain_model

LIMIT = 24


@cache
def tokenizer(kind: str):
    return TOKENIZERS[kind]()


def ids(kind: str, pieces: str) -> list[int]:
    """Of pieces with a slash between them."""
    vocabulary = tokenizer(kind).get_vocab()
    return [vocabulary[piece] for piece in pieces.split("/")]


SAID = {
    "a special token": ("sentence_piece", f"▁the/▁cat/{STOCK_SPECIAL}/▁sat/▁on", [STOCK_SPECIAL]),
    "a special token, byte level": ("byte_level", f"the/Ġcat/{STOCK_SPECIAL}/Ġsat/Ġon", [STOCK_SPECIAL]),
    "a special token after a line": ("sentence_piece", f"▁the/\n/{STOCK_SPECIAL}/▁on", [f"\n{STOCK_SPECIAL}"]),
    "spelt in bytes": ("sentence_piece", "▁the/<0xE2>/<0x82>/<0xAC>/<0xC3>/<0xA9>/▁on/▁a", ["€é"]),
    "spelt in bytes, byte level": ("byte_level", "the/â/Ĥ/¬/Ã/©/Ġon/Ġa", ["€é"]),
    "ends in a blank": ("sentence_piece", "▁the/▁Q/:/▁cat/▁sat/▁on", ["Q: "]),
    "ends in a blank, byte level": ("byte_level", "the/ĠQ/:/Ġcat/Ġsat/Ġon", ["Q: "]),
    "ends in a blank, word pieces": ("word_piece", "the/Q/cat/sat/on", ["Q "]),
    "begins with a blank": ("sentence_piece", "▁the/▁cat/▁sat/▁on", [" sat"]),
    "within a piece": ("sentence_piece", "▁the/▁User/▁sat/▁on", ["se"]),
    "over pieces": ("word_piece", "the/##cat/##sat/on/a", ["ecats"]),
    "the first of two": ("byte_level", "the/Ġcat/Ġsat/:/Ġon", [":", "cat"]),
    "two at one token": ("sentence_piece", "▁the/▁cat/▁sat/▁on", ["at", " cat"]),
    "overlapping": ("sentence_piece", "▁the/▁cat/▁sat/▁on", ["cat", "the ca"]),
    "none": ("sentence_piece", "▁the/▁cat/▁sat/▁on", ["dog"]),
    "spelt with more tokens than its tokenizer takes": ("byte_level", "the/U/s/e/r/Ġon/Ġcat", ["User"]),
}


@pytest.mark.parametrize(("kind", "pieces", "until"), SAID.values(), ids=SAID)
def test_responses_end_where_those_of_lm_evals_own_model_do(kind, pieces, until):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    made = tokenizer(kind)
    said = ids(kind, pieces)
    model = chain_model([said[-1], *said[:-1]], len(made))
    theirs = HFLM(pretrained=model, tokenizer=made, batch_size=1, max_length=256, add_bos_token=False)
    decoded: list[int] = []
    generate = theirs._model_generate

    def noting(context, **more):
        rows = generate(context, **more)
        decoded.append(rows.shape[1] - context.shape[1])
        return rows

    theirs._model_generate = noting
    theirs.tok_batch_encode = lambda _texts, **_: _batch([said[-1:]])
    asked = Instance("generate_until", {}, ("x", {"until": list(until), "max_gen_toks": LIMIT, "do_sample": False}), 0)
    (text,) = theirs.generate_until([asked], disable_tqdm=True)
    run = Engine(model, made).generate([said[-1:]], batch_size=1, max_new_tokens=LIMIT, stop=(*until, made.eos_token))
    assert run.texts == [text]
    missed = until == ["User"]  # by lm-eval, which then decodes to the limit
    assert (len(run.token_ids[0]), decoded[0]) == ((5, LIMIT) if missed else (decoded[0], decoded[0]))
    assert run.finish_reasons == ["length" if until == ["dog"] else "stop"]


def _batch(rows):
    import torch

    return torch.tensor(rows), torch.ones(1, len(rows[0]), dtype=torch.long)


def first_end(made, tokens: list[int], stop: list[str]) -> int | None:
    """Tokens after which any text of them shows a stop string, tried one by one."""
    for count in range(1, len(tokens) + 1):
        for skip in (False, True):
            text = made.decode(tokens[:count], skip_special_tokens=skip)
            if any(string in text for string in stop):
                return count
    return None


@st.composite
def responses(draw):
    kind = draw(st.sampled_from(sorted(TOKENIZERS)))
    made = tokenizer(kind)
    common = [made.get_vocab()[piece] for piece in (STOCK_SPECIAL, ":", "the", "cat", "Q") if piece in made.get_vocab()]
    token = st.integers(0, len(made) - 1) | st.sampled_from(common)
    tokens = draw(st.lists(token, min_size=1, max_size=30))
    start = draw(st.integers(0, len(tokens) - 1))
    part = made.decode(tokens[start : start + draw(st.integers(1, 4))])
    cut = draw(st.integers(0, 3))
    texts = [part[cut:], part[: len(part) - cut], part, *draw(st.lists(st.sampled_from([" ", "\n", "Q:", "at t"])))]
    return kind, tokens, [text for text in texts if text and "\ufffd" not in text]


@settings(deadline=None, max_examples=200)
@given(responses())
def test_a_stop_is_found_with_the_token_that_completes_it(given_response):
    kind, tokens, stop = given_response
    made = tokenizer(kind)
    stopper = Stopper(None, made)
    found = next((at for at in range(1, len(tokens) + 1) if stopper.hit(tokens[:at], stop)), None)
    assert found == first_end(made, tokens, stop)


def test_no_stop_is_looked_for_where_none_is_asked():
    stopper = Stopper(None, SimpleNamespace(eos_token_id=3, all_special_ids=[3]))
    assert not stopper.hit([1, 2], ())
    assert stopper.eos_ids == {3}
