"""Guards: how long responses are and how many the length limit cuts off, against vanilla's on the same plan.

A policy that breaks a model often shows as responses that run on, or stop at once, before (or without) its score
showing it. So a score is to be read with these two numbers, and whatever leaves vanilla's band is flagged.
"""

# N requests of one (cell, subtask)

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import statistics
from analysis.attempts import several
from analysis.load import Records
from analysis.statistics import Estimate

TOKENS_BAND = 0.10
"""Share of vanilla's mean tokens a response. Vanilla against itself moves far less: in another batch plan or number
format a few responses flip at near-ties of logits and end elsewhere, up and down alike (the bundled model's: none)."""
LENGTH_STOP_BAND = 0.05
"""Share of the responses: 5 points. The mean hides it where few responses run on, and each costs an answer."""
SIZE_ALONE = 2.0
"""Times the band beyond which a difference is flagged whatever its interval: one lane has none, and a few have one too
wide to tell."""

WORDS = {
    ("tokens", 1): "longer",
    ("tokens", -1): "shorter",
    ("stops", 1): "more cut off",
    ("stops", -1): "fewer cut off",
    ("thoughts", 1): "more thoughts cut",
    ("thoughts", -1): "fewer thoughts cut",
}
INSIDE, NOTHING_TO_COMPARE = "", "-"
_FLAT_TOKENS = 1e-9
"""Standard errors below this many tokens are rounding."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Of one (cell, subtask) that generates."""

    new_tokens: Estimate
    """Tokens a response."""
    length_stop_share: Estimate
    """Share (0..1) of the responses that ended by length."""
    new_tokens_difference: Estimate
    """To vanilla on the same requests; likewise below."""
    length_stop_share_difference: Estimate
    flag: str
    """Words of WORDS joined by commas; INSIDE the band; NOTHING_TO_COMPARE without a vanilla partner."""


@dataclass(frozen=True, kw_only=True)
class _Responses:
    request: NDArray[np.int64]
    document: NDArray[np.int64] | None
    """None where each has one response."""
    lane: NDArray[np.int64]
    tokens: NDArray[np.float64]
    stopped: NDArray[np.float64]
    """1 where the length limit ended it."""
    unfinished: NDArray[np.float64]
    """1 where it was over before its thought was."""


def guards(records: Records, partners: Mapping[str, str]) -> dict[tuple[str, str], Guard]:
    """Guards of every (cell, subtask) that generates; `partners` names the vanilla cell of the same plan.

    Over all requests, repeats included; intervals are clustered by lane, and where a document has several responses by
    document as well. The band is what vanilla itself would show by
    chance or under another plan. A cell leaves it where the paired difference is either both

    - beyond chance: its 95 % interval excludes zero (alone, one in twenty harmless cells would be flagged, and with
      many documents every policy, since none leaves all texts as they were), and
    - large: beyond TOKENS_BAND of vanilla's mean, or beyond LENGTH_STOP_BAND, of responses and likewise of thoughts
      (alone, a few lanes would do by chance),

    or where its size is beyond SIZE_ALONE times the band. One lane gives no interval, and a few lanes give one that
    holds zero even for a ruined model; a guard that waits for more lanes would be silent just then. (Where lanes are
    many, so large a difference is beyond chance anyhow.) A flag asks to look; what it saw stands beside it.
    """
    return guards_of(records.responses, partners)


def guards_of(responses: pd.DataFrame, partners: Mapping[str, str]) -> dict[tuple[str, str], Guard]:
    """`guards` of the rows of responses of several cells, each naming its `cell_id`."""
    found: dict[tuple[str, str], Guard] = {}
    everything = _by_subtask(responses)
    for (cell, subtask), own in everything.items():
        partner = partners.get(cell, "")
        found[cell, subtask] = _guard(own, everything.get((partner, subtask)), is_vanilla=partner == cell)
    return found


def outside(difference: Estimate, band: float) -> int:
    """+1 above the band, -1 below it, 0 inside (see `guards`)."""
    size, low, high = abs(difference.value), difference.low, difference.high
    beyond_chance = low is not None and high is not None and (low > 0 or high < 0)
    beyond = size > SIZE_ALONE * band or (size > band and beyond_chance)
    return int(math.copysign(1, difference.value)) if beyond else 0


def is_flagged(flag: object) -> bool:
    return isinstance(flag, str) and flag not in (INSIDE, NOTHING_TO_COMPARE)


def together(flags: Iterable[str]) -> str:
    """The flag of several rows: every word that one of them has; nothing to compare only if that is so for all."""
    given = list(flags)
    words = {word for flag in given if is_flagged(flag) for word in flag.split(", ")}
    if words:
        return ", ".join(word for word in WORDS.values() if word in words)
    return NOTHING_TO_COMPARE if given and set(given) == {NOTHING_TO_COMPARE} else INSIDE


def _by_subtask(responses: pd.DataFrame) -> dict[tuple[str, str], _Responses]:
    generated = responses[(responses["finish_reason"] != "scored").to_numpy()]
    if generated.empty:
        return {}
    request, lane = generated["request"].to_numpy(), generated["lane"].to_numpy()
    document = generated["doc_id"].to_numpy() if "doc_id" in generated else None
    tokens = generated["new_tokens"].to_numpy(dtype=float)
    stopped = (generated["finish_reason"] == "length").to_numpy(dtype=float)
    unfinished = np.zeros(len(generated))
    if "thought" in generated:
        unfinished = (generated["thought"] == "cut").to_numpy(dtype=float)
    groups = generated.groupby(["cell_id", "subtask"], observed=True).indices
    return {
        key: _Responses(
            request=request[at],
            document=None if document is None else several(document[at]),
            lane=lane[at],
            tokens=tokens[at],
            stopped=stopped[at],
            unfinished=unfinished[at],
        )
        for key, at in groups.items()
    }


def _guard(own: _Responses, vanilla: _Responses | None, *, is_vanilla: bool) -> Guard:
    tokens = statistics.mean_of(own.tokens, own.lane, own.document)
    if tokens.se is not None and tokens.low is not None:
        tokens = replace(tokens, low=max(tokens.low, 0.0)) if tokens.se > _FLAT_TOKENS else Estimate(value=tokens.value)
    stops = statistics.mean(own.stopped, own.lane, own.document)
    known = {"new_tokens": tokens, "length_stop_share": stops}
    if is_vanilla:
        zero = Estimate(value=0.0)
        return Guard(**known, new_tokens_difference=zero, length_stop_share_difference=zero, flag=INSIDE)
    mine = theirs = np.empty(0, int)
    if vanilla is not None:
        _, mine, theirs = np.intersect1d(own.request, vanilla.request, return_indices=True)
    if vanilla is None or not len(mine):
        none = Estimate(value=math.nan)
        return Guard(**known, new_tokens_difference=none, length_stop_share_difference=none, flag=NOTHING_TO_COMPARE)
    names = own.lane[mine], None if own.document is None else own.document[mine]
    longer = _change(own.tokens[mine] - vanilla.tokens[theirs], *names)
    stopped = statistics.paired_difference(own.stopped[mine], vanilla.stopped[theirs], *names)
    cut = statistics.paired_difference(own.unfinished[mine], vanilla.unfinished[theirs], *names)
    signs = {
        "tokens": outside(longer, TOKENS_BAND * float(vanilla.tokens[theirs].mean())),
        "stops": outside(stopped, LENGTH_STOP_BAND),
        "thoughts": outside(cut, LENGTH_STOP_BAND),
    }
    flag = ", ".join(WORDS[what, sign] for what, sign in signs.items() if sign)
    return Guard(**known, new_tokens_difference=longer, length_stop_share_difference=stopped, flag=flag)


def _change(
    tokens_N: NDArray[np.float64], lanes_N: NDArray[np.int64], documents_N: NDArray[np.int64] | None
) -> Estimate:
    """Mean change in tokens. Without any change there is no interval: how far lanes vary was not seen."""
    estimate = statistics.mean_of(tokens_N, lanes_N, documents_N)
    collapsed = estimate.se is not None and estimate.se <= _FLAT_TOKENS and abs(estimate.value) <= _FLAT_TOKENS
    return Estimate(value=0.0) if collapsed else estimate
