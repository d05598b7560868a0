"""Corpus BLEU from sentence statistics: sacrebleu's number, and honest intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import bleu, statistics

words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", ".", ",", "12", "it's"]), max_size=12).map(" ".join)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_equals_sacrebleu(corpus: list[tuple[str, str]]) -> None:
    hypotheses, references = [pair[0] for pair in corpus], [pair[1] for pair in corpus]
    total = bleu.sentence_counts(hypotheses, references).sum(axis=0)
    expected = sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert bleu.bleu_of_counts(total) == pytest.approx(expected, abs=1e-9)
    assert bleu.bleu_of_many(total[None, :])[0] == pytest.approx(expected, abs=1e-9)


def _corpus(size: int, noise: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Sentences of ten letters of which a share is replaced; a larger `noise` spoils a superset."""
    rng = np.random.default_rng(seed)
    references = [" ".join(rng.choice(list("abcdefgh"), 10)) for _ in range(size)]
    spoiled = rng.random((size, 10)) < noise
    texts = [
        " ".join("x" if bad else word for bad, word in zip(row, reference.split(), strict=True))
        for row, reference in zip(spoiled, references, strict=True)
    ]
    return texts, references


def test_interval_is_seeded_and_holds_the_value() -> None:
    counts = bleu.sentence_counts(*_corpus(64, 0.15))
    lanes = np.arange(64) // 4
    estimate = bleu.corpus_bleu(counts, lanes, seed=3)
    assert estimate == bleu.corpus_bleu(counts, lanes, seed=3)
    assert estimate != bleu.corpus_bleu(counts, lanes, seed=4)
    assert estimate.low is not None and estimate.high is not None
    assert 0 < estimate.low < estimate.value < estimate.high < 100


def test_paired_difference_is_sharper_than_unpaired() -> None:
    vanilla = bleu.sentence_counts(*_corpus(64, 0.15))
    policy = bleu.sentence_counts(*_corpus(64, 0.18))
    lanes = np.arange(64) // 4
    difference = bleu.paired_bleu_difference(policy, vanilla, lanes)
    parts = [bleu.corpus_bleu(counts, lanes) for counts in (policy, vanilla)]
    assert difference.value == pytest.approx(parts[0].value - parts[1].value)
    assert difference.high is not None and difference.high < 0
    assert difference.se is not None
    assert difference.se < 0.7 * np.hypot(parts[0].se or 0, parts[1].se or 0)


def test_one_lane_has_no_interval() -> None:
    counts = bleu.sentence_counts(*_corpus(4, 0.2))
    assert bleu.corpus_bleu(counts, np.zeros(4)).low is None
    assert bleu.paired_bleu_difference(counts, counts, np.zeros(4)).low is None


def test_a_perfect_corpus_and_an_unchanged_one_do_not_claim_certainty() -> None:
    counts = bleu.sentence_counts(*_corpus(40, 0.0))
    lanes = np.arange(40) // 4
    perfect = bleu.corpus_bleu(counts, lanes)
    assert perfect.value == pytest.approx(100)
    assert perfect.low is not None and 85 < perfect.low < 95
    same = bleu.paired_bleu_difference(counts, counts, lanes)
    assert same.value == 0.0
    assert same.low is not None and -15 < same.low < -9, "3.69 sentences of 40, and lanes may be alike"


def test_one_small_change_does_not_shrink_the_floor() -> None:
    """One of 200 sentences changed gave [-0.04,+0.02] once, none +-1.37."""
    texts, references = _corpus(200, 0.1)
    vanilla = bleu.sentence_counts(texts, references)
    at = next(i for i, text in enumerate(texts) if not text.startswith("x"))
    other = [*texts[:at], "x " + texts[at].partition(" ")[2], *texts[at + 1 :]]
    policy = bleu.sentence_counts(other, references)
    lanes = np.arange(200) // 8
    nothing, one = (bleu.paired_bleu_difference(counts, vanilla, lanes) for counts in (vanilla, policy))
    assert nothing.low is not None and one.low is not None and one.value < 0
    assert 1.5 * nothing.low < one.low <= nothing.low < -1
    assert statistics.tost(nothing, 3.0) <= statistics.tost(one, 3.0)


def test_a_destroyed_sentence_counts_as_much_as_it_is_worth() -> None:
    texts, references = _corpus(200, 0.1)
    vanilla = bleu.sentence_counts(texts, references)
    policy = bleu.sentence_counts(["", *texts[1:]], references)
    found = bleu.paired_bleu_difference(policy, vanilla, np.arange(200) // 8)
    assert found.low is not None and found.low == pytest.approx(
        -bleu.bleu_of_counts(vanilla.sum(axis=0)) * 5.6 / 200, rel=0.5
    )


def test_plans_of_a_corpus_are_averaged() -> None:
    counts = (
        bleu.sentence_counts(*_corpus(64, 0.1)),
        bleu.sentence_counts(*_corpus(64, 0.3)),
        bleu.sentence_counts(*_corpus(64, 0.2)),
    )
    vanilla, first, second = counts
    lanes = np.arange(64) // 4
    alone = [bleu.paired_bleu_difference(policy, vanilla, lanes).value for policy in (first, second)]
    names = np.tile(np.arange(64), 2), np.repeat([0, 1], 64)
    both = bleu.paired_bleu_difference(
        np.concatenate([first, second]), np.tile(vanilla, (2, 1)), np.concatenate([lanes, 100 + lanes]), *names
    )
    assert both.value == pytest.approx(np.mean(alone))
    assert both.low is not None and both.low < both.value < 0


def test_nothing_said_scores_zero() -> None:
    assert bleu.bleu_of_many(bleu.sentence_counts(["", ""], ["a b c d", "e"]))[0] == 0.0


@pytest.mark.slow
def test_a_thousand_resamples_of_four_hundred_sentences_take_no_second() -> None:
    counts = bleu.sentence_counts(*_corpus(400, 0.15))
    begin = time.process_time()
    bleu.paired_bleu_difference(counts, counts[::-1], np.arange(400) // 4)
    assert time.process_time() - begin < 1.0
