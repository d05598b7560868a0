"""pass@k of documents that were answered several times, as values that the other estimators take."""

# M responses (a document and a repeat)

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.statistics.crossed import numbered


def pass_values(scores_M: ArrayLike, documents_M: ArrayLike, k: int) -> NDArray[np.float64]:
    """`[M]` whose mean over a document's responses is its pass@k, the unbiased 1 - C(n - c, k) / C(n, k) (Chen and
    others 2021) of n scores of which c are 1 and the others 0, and that vary as it does: a response adds its score's
    part in it, k (1 - c/n)^(k - 1) of what it is from c/n (the delta method). So a mean or paired difference of
    them, clustered by document and lane, is that of pass@k; with k = 1 they are the scores.

    ValueError if a document has fewer than `k`.
    """
    scores, document = np.asarray(scores_M, dtype=float), numbered(documents_M)
    total, right = np.bincount(document), np.bincount(document, weights=scores)
    if total.min() < k:
        raise ValueError(f"k={k}: must be at most {total.min()}, the responses of a document")
    pairs = zip(total.tolist(), right.round().astype(int).tolist(), strict=True)
    passing = np.array([1.0 - comb(n - c, k) / comb(n, k) for n, c in pairs])
    share = right / total
    slope = k * (1.0 - share) ** (k - 1)
    return passing[document] + slope[document] * (scores - share[document])
