"""Drawing from logits: transformers' filters, the right frequencies, and noise that is a function of seed, step and
token alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import lynx_exp.engine.requests.sampling as sampling_module
from lynx_exp.engine import Sampling
from lynx_exp.engine.requests.sampling import Draw, Filter, gumbel, split_mix, starts

DRAWS = 20_000
NO_IDS = torch.zeros(1, 0, dtype=torch.long)

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.3, 3.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.8, 0.5, 0.1, 1e-6]),
    top_k=st.none() | st.integers(1, 400),
    seed=st.integers(0, 2**64 - 1),
)


def transformers_scores(logits_V: Tensor, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """`[V]`, by transformers' own warpers in the order in which it applies them; `dtype`: after the temperature."""
    scores = TemperatureLogitsWarper(sampling.temperature)(NO_IDS, logits_V[None].float()).to(dtype)
    if sampling.top_k is not None:
        scores = TopKLogitsWarper(sampling.top_k)(NO_IDS, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(NO_IDS, scores)
    return scores[0]


def normal(rows: int, vocabulary: int, seed: int, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def draw(logits_V: Tensor, sampling: Sampling, seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
    rows = [Sampling(**{**vars(sampling), "seed": seed}) for seed in seeds]
    return Draw(rows)(logits_V.expand(len(rows), -1), steps)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(samplings, min_size=1, max_size=6), vocabulary=st.integers(1, 300), seed=st.integers(0, 10**6))
def test_filters_are_those_of_transformers(rows: list[Sampling], vocabulary: int, seed: int) -> None:
    """Rows of different settings side by side: the same tokens are kept, with the same probabilities."""
    logits = normal(len(rows), vocabulary, seed)
    for ours, logits_V, sampling in zip(Filter.of(rows)(logits), logits, rows, strict=True):
        theirs = transformers_scores(logits_V, sampling, torch.float64)
        assert torch.equal(ours.isinf(), theirs.isinf())
        assert torch.allclose(ours.softmax(-1), theirs.softmax(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "asked",
    [dict(), dict(temperature=0.6), dict(top_k=50), dict(top_p=0.9), dict(temperature=1.2, top_k=40, top_p=0.8)],
)
def test_filters_are_those_of_transformers_in_fp32(asked: dict[str, Any], dtype: torch.dtype) -> None:
    """As `generate` computes them, over a large vocabulary; logits of few bits are often equal."""
    sampling = Sampling(**asked)
    for seed in range(4):
        logits = normal(1, 50_000, seed).to(dtype)
        (ours,), theirs = Filter.of([sampling])(logits), transformers_scores(logits[0], sampling, torch.float32)
        if dtype == torch.float32:
            assert torch.equal(ours, theirs.double())
        kept, their_kept = ours[~ours.isinf()].sort().values, theirs[~theirs.isinf()].sort().values
        assert len(kept) == len(their_kept)
        assert torch.equal(kept, their_kept.double())


def test_among_equal_logits_the_first_tokens_stay() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    (cut,) = Filter.of([Sampling(top_p=0.3)])(logits)
    assert (~cut.isinf()).nonzero()[:, 0].tolist() == [1, 2]
    (ties,) = Filter.of([Sampling(top_k=2)])(logits)
    assert (~ties.isinf()).nonzero()[:, 0].tolist() == [1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.none() | samplings, min_size=1, max_size=9),
    vocabulary=st.integers(1, 200),
    block=st.integers(1, 1000),
    data=st.data(),
)
def test_a_row_draws_what_it_draws_alone(
    rows: list[Sampling | None], vocabulary: int, block: int, data: st.DataObject
) -> None:
    """In any company, greedy or not, and however many rows are taken at once."""
    logits = normal(len(rows), vocabulary, data.draw(st.integers(0, 10**6)))
    together = Draw.of(rows)
    sampled = together.rows if together else []
    steps = data.draw(st.lists(st.integers(0, 5000), min_size=len(sampled), max_size=len(sampled)))
    step_of = dict(zip(sampled, steps, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_module, "BLOCK", block)
        drawn = together(logits, steps) if together else logits.argmax(-1)
    for at, sampling in enumerate(rows):
        alone = (
            logits[at : at + 1].argmax(-1) if sampling is None else Draw([sampling])(logits[at : at + 1], [step_of[at]])
        )
        assert drawn[at] == alone[0]


def test_who_samples_not_needs_no_draw() -> None:
    assert Draw.of([None, None]) is None
    assert Draw.of([None, Sampling(), None]).rows == [1]  # type: ignore[union-attr]


def test_the_only_token_that_is_kept_is_drawn() -> None:
    logits = normal(1, 100, 0)[0]
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(temperature=1e-6)):
        assert set(draw(logits, sampling, [3] * 200, range(200)).tolist()) == {int(logits.argmax())}


@pytest.mark.parametrize(
    "asked",
    [dict(), dict(temperature=0.5), dict(temperature=2.0), dict(top_k=3), dict(top_p=0.7), dict(top_k=4, top_p=0.9)],
)
@pytest.mark.parametrize("over", ["steps", "seeds", "requests"])
def test_frequencies_are_the_probabilities(asked: dict[str, Any], over: str) -> None:
    sampling = Sampling(**asked, seed=11)
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.0, -2.0, 1.9])
    if over == "requests":
        seeds, steps = [sampling.with_request_seed(number).seed for number in range(DRAWS)], [5] * DRAWS
    else:
        seeds, steps = ([11] * DRAWS, range(DRAWS)) if over == "steps" else (range(DRAWS), [5] * DRAWS)
    counts = draw(logits, sampling, seeds, steps).bincount(minlength=len(logits))
    probability = transformers_scores(logits, sampling, torch.float64).softmax(-1)
    possible = probability > 0
    assert not counts[~possible].any()
    assert chisquare(counts[possible].numpy(), (probability[possible] * DRAWS).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("other", ["next step", "next seed", "next request", "seed and step swapped"])
def test_neighbouring_draws_are_independent(other: str) -> None:
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.0])
    seeds, steps = range(DRAWS), [seed % 7 for seed in range(DRAWS)]
    pairs = {
        "next step": (seeds, [step + 1 for step in steps]),
        "next seed": ([seed + 1 for seed in seeds], steps),
        "next request": ([Sampling(seed=seed).with_request_seed(1).seed for seed in seeds], steps),
        "seed and step swapped": (steps, list(seeds)),
    }
    one = draw(logits, Sampling(), seeds, steps)
    two = draw(logits, Sampling(), *pairs[other])
    table = (one * 5 + two).bincount(minlength=25).view(5, 5)
    assert chi2_contingency(table.numpy()).pvalue > 1e-4


def test_no_two_streams_are_the_same() -> None:
    seeds = [*range(200), *(2**64 - 1 - number for number in range(200))]
    streams = torch.stack([starts([seed] * 50, range(50)) for seed in seeds])
    assert streams.unique().numel() == streams.numel()
    derived = {Sampling(seed=seed).with_request_seed(number).seed for seed in range(100) for number in range(100)}
    assert len(derived) == 10_000
    assert Sampling(temperature=0.3, top_k=7).with_request_seed(4).top_k == 7


def test_noise_is_split_mix_and_gumbel() -> None:
    """The published outputs of SplitMix64 from 1234567; mean and variance of a Gumbel number; none is infinite."""
    known = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
    assert [int(out) % 2**64 for out in split_mix(torch.tensor([1234567]), 5)[0]] == list(known)
    numbers = gumbel(starts([1, 2, 3, 4], [0, 1, 2, 3]), 250_000)
    assert numbers.isfinite().all()
    assert float(numbers.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(numbers.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_draws_stay_what_they_were() -> None:
    """Stored results are drawn anew only with the same noise."""
    assert starts([0, 1, 2**64 - 1], [0, 1, 4096]).tolist() == [
        -7719536716146762356,
        3906415716773290831,
        1817021546806610637,
    ]
    assert Sampling(seed=7).with_request_seed(3).seed == 5660201093414791095
    assert draw(torch.linspace(-1, 1, 50), Sampling(top_p=0.9), [0] * 12, range(12)).tolist() == [
        13,
        39,
        29,
        42,
        44,
        45,
        28,
        39,
        46,
        43,
        28,
        46,
    ]


def test_nearly_equal_distributions_draw_nearly_always_the_same() -> None:
    """What pairs a policy with vanilla: other tokens with a probability of at most 2 d / (1 + d)."""
    logits = normal(1, 1000, 5)[0]
    for spread in (0.01, 0.1, 0.5):
        moved = logits + normal(1, 1000, 6, spread)[0]
        distance = float((logits.double().softmax(-1) - moved.double().softmax(-1)).abs().sum()) / 2
        one, two = (draw(given, Sampling(), range(4000), [0] * 4000) for given in (logits, moved))
        bound = 2 * distance / (1 + distance)
        assert float((one != two).double().mean()) <= bound + 4 * math.sqrt(bound / 4000)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("temperature", 0, "above 0; for greedy decoding give no sampling"),
        ("temperature", -1.0, "finite and above 0"),
        ("temperature", float("inf"), "finite and above 0"),
        ("temperature", float("nan"), "finite and above 0"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("top_k", 0, "at least 1, or None"),
        ("top_k", 2.5, "at least 1, or None"),
        ("seed", -1, "from 0 to 2\\*\\*64 - 1"),
        ("seed", 2**64, "from 0 to 2\\*\\*64 - 1"),
        ("seed", 0.5, "from 0 to 2\\*\\*64 - 1"),
    ],
)
def test_bad_settings_are_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}={value}: .*{allowed}"):
        Sampling(**{field: value})
