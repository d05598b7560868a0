from __future__ import annotations

import pytest

from lynx_exp.launch.progress import Estimate, clock


def test_time_left_uses_the_most_similar_work():
    estimate = Estimate()
    assert estimate.left([(("a", 4), 10)]) is None
    estimate.add(("a", 4), seconds=10, units=5)
    estimate.add(("a", 16), seconds=5, units=5)
    estimate.add(("measure", 4), seconds=100, units=1)
    assert estimate.left([(("a", 4), 3)]) == pytest.approx(6)
    assert estimate.left([(("a", 8), 2)]) == pytest.approx(3)  # the mean of both batch sizes
    assert estimate.left([(("b", 4), 2)]) == pytest.approx(3)  # measuring says nothing about requests
    assert estimate.left([(("measure", 16), 1)]) == pytest.approx(100)
    assert estimate.left([]) is None


@pytest.mark.parametrize(("seconds", "shown"), [(None, "?"), (0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown
