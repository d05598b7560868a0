"""Sampling with temperature, top-k and top-p, whose noise is each request's own.

A token is drawn by the Gumbel-max trick (Maddison, Tarlow and Minka 2014): each token of the vocabulary has a random
number, and the greatest sum of score and number falls on a token with its softmax probability. A number is a function
of (seed of the request, step, token) alone: neither lane-mates nor packing, batch size or device change it. So two
policies that draw with the same seed from distributions at total variation distance d draw other tokens with a
probability of at most 2 d / (1 + d) (Daliri, Musco and Suresh 2024): paired differences are not drowned in noise.

R rows, n of them that sample, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import torch
from torch import Tensor

from lynx_exp.engine.requests.argmax import most_likely

GOLDEN, FIRST, SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""SplitMix64's increment and multipliers (Steele, Lea and Flood 2014), as int64."""

BLOCK = 2**23
"""Scores drawn from at once, unless a single row has more: 64 MiB in fp64, of which sorting takes several."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request draws its tokens. The order is that of transformers: temperature, then top-k, then top-p."""

    temperature: float = 1.0
    """Divides the logits; above 0. Greedy decoding is no sampling at all."""
    top_p: float = 1.0
    """Only the fewest likeliest tokens whose probabilities reach this sum are drawn; 1: all."""
    top_k: int | None = None
    """Only the so many likeliest tokens, and any as likely as the last of these, are drawn; None: all."""
    seed: int = 0
    """The noise, from 0 to 2**64 - 1. Requests of one seed draw with the same noise: see `with_request_seed`."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            hint = "; for greedy decoding give no sampling" if self.temperature == 0 else ""
            raise ValueError(f"temperature={self.temperature}: must be finite and above 0{hint}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k={self.top_k}: must be a whole number of at least 1, or None")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed}: must be a whole number from 0 to 2**64 - 1")

    def with_request_seed(self, number: int) -> Sampling:
        """The same with a seed of its own for request `number` of a run: the first 8 bytes of BLAKE2b over seed and
        number, both little-endian in 8 bytes, personalised "request"."""
        return replace(self, seed=int.from_bytes(_hash(b"request", self.seed, number), "little"))


class Draw:
    """Draws the next token of rows, of which some, at least one, sample and the others take the most likely."""

    def __init__(self, samplings: Sequence[Sampling | None]) -> None:
        """`samplings`: of each row; None: greedy."""
        self.rows = [row for row, sampling in enumerate(samplings) if sampling is not None]
        """Those that sample."""
        sampled = [sampling for sampling in samplings if sampling is not None]
        self._seeds = [sampling.seed for sampling in sampled]
        self._all = len(sampled) == len(samplings)
        self._row_n = torch.tensor(self.rows, dtype=torch.long)
        self._filter = Filter.of(sampled)

    @classmethod
    def of(cls, samplings: Sequence[Sampling | None]) -> Draw | None:
        """None if no row samples."""
        return cls(samplings) if any(sampling is not None for sampling in samplings) else None

    def __call__(self, logits_RV: Tensor, steps: Sequence[int]) -> Tensor:
        """`[R]` tokens, without waiting for the device. `steps`: for each of `rows`, how many tokens it has."""
        device, vocabulary = logits_RV.device, logits_RV.shape[1]
        self._row_n, self._filter = self._row_n.to(device, non_blocking=True), self._filter.to(device)
        start_n = starts(self._seeds, steps).to(device, non_blocking=True)
        given_nV = logits_RV if self._all else logits_RV[self._row_n]
        size = max(1, BLOCK // vocabulary)
        drawn = []
        for at in range(0, len(self.rows), size):
            part = slice(at, at + size)
            score_nV = self._filter.take(part)(given_nV[part])
            drawn.append(most_likely(score_nV.add_(gumbel(start_n[part], vocabulary))))
        drawn_n = torch.cat(drawn)
        return drawn_n if self._all else most_likely(logits_RV).index_copy_(0, self._row_n, drawn_n)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """transformers' TemperatureLogitsWarper, TopKLogitsWarper and TopPLogitsWarper, each row with its own settings."""

    temperature_n: Tensor
    """fp32."""
    top_k_n: Tensor
    """int64; 0: all."""
    tail_n: Tensor
    """fp64: the probability that top-p cuts off at most; -1: nothing is cut."""
    most: int
    """The greatest top-k; 0: no row has one."""
    cut: bool
    """Whether any row has a top-p below 1."""

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> Filter:
        top_k = [sampling.top_k or 0 for sampling in samplings]
        tail = [1 - sampling.top_p if sampling.top_p < 1 else -1.0 for sampling in samplings]
        return cls(
            temperature_n=torch.tensor([sampling.temperature for sampling in samplings], dtype=torch.float32),
            top_k_n=torch.tensor(top_k),
            tail_n=torch.tensor(tail, dtype=torch.float64),
            most=max(top_k),
            cut=max(tail) > 0,
        )

    def to(self, device: torch.device) -> Filter:
        if self.temperature_n.device == device:
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def take(self, rows: slice) -> Filter:
        """Of these rows."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Filter:
        return replace(
            self,
            temperature_n=change(self.temperature_n),
            top_k_n=change(self.top_k_n),
            tail_n=change(self.tail_n),
        )

    def __call__(self, logits_nV: Tensor) -> Tensor:
        """fp64 `[n, V]`: their softmax is what tokens are drawn from; -inf for those that never are.

        Among equal logits at the edge of top-p those of lower index stay; transformers leaves this open.
        """
        score_nV = (logits_nV.float() / self.temperature_n[:, None]).double()  # transformers divides in fp32
        if self.most:
            best_nK = score_nV.topk(min(self.most, score_nV.shape[1])).values
            last_n1 = best_nK.gather(1, (self.top_k_n.clamp(1, best_nK.shape[1]) - 1)[:, None])
            score_nV.masked_fill_((score_nV < last_n1) & (self.top_k_n > 0)[:, None], -torch.inf)
        if self.cut:
            ordered_nV, token_nV = score_nV.sort(dim=-1, descending=True, stable=True)
            reached_nV = ordered_nV.softmax(-1).flip(-1).cumsum(-1).flip(-1)
            out_nV = reached_nV <= self.tail_n[:, None]
            out_nV[:, 0] = False
            score_nV.masked_fill_(torch.empty_like(out_nV).scatter_(1, token_nV, out_nV), -torch.inf)
        return score_nV


def starts(seeds: Sequence[int], steps: Sequence[int]) -> Tensor:
    """`[n]` int64: where the noise of each (seed, step) starts: 8 bytes of BLAKE2b over both."""
    found = [_hash(b"step", seed, step) for seed, step in zip(seeds, steps, strict=True)]
    return torch.tensor([int.from_bytes(start, "little", signed=True) for start in found], dtype=torch.long)


def split_mix(start_n: Tensor, count: int) -> Tensor:
    """`[n, count]` int64: the first outputs of SplitMix64 from each start."""
    mixed = torch.arange(1, count + 1, device=start_n.device) * GOLDEN + start_n[:, None]
    mixed.bitwise_xor_((mixed >> 30) & (2**34 - 1)).mul_(FIRST)  # a shift of int64 brings in copies of the sign
    mixed.bitwise_xor_((mixed >> 27) & (2**37 - 1)).mul_(SECOND)
    return mixed.bitwise_xor_((mixed >> 31) & (2**33 - 1))


def gumbel(start_n: Tensor, vocabulary: int) -> Tensor:
    """fp64 `[n, V]`: a standard Gumbel number for each token, from 52 random bits, so that none is infinite."""
    bits_nV = split_mix(start_n, vocabulary) >> 12 & (2**52 - 1)
    uniform_nV = bits_nV.double().add_(0.5).mul_(2.0**-52)
    return uniform_nV.log_().neg_().log_().neg_()


def _hash(purpose: bytes, *numbers: int) -> bytes:
    """8 bytes of numbers from 0 to 2**64 - 1."""
    content = b"".join(number.to_bytes(8, "little") for number in numbers)
    return blake2b(content, digest_size=8, person=purpose).digest()
