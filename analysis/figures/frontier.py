"""Which points no other point beats."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def nondominated(benefits_ND: ArrayLike) -> NDArray[np.bool_]:
    """True for each of N points that no other equals or exceeds in all D benefits and exceeds in one. Ties are kept."""
    points = np.asarray(benefits_ND, dtype=float)
    at_least = (points[:, None, :] >= points[None, :, :]).all(axis=-1)
    better = at_least & (points[:, None, :] > points[None, :, :]).any(axis=-1)
    return np.logical_not(np.any(better, axis=0))
