"""How long requests take, by cells that were run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.run.cost_estimate import seconds_for


def test_the_fixed_cost_of_tiny_cells_is_not_multiplied() -> None:
    tiny = [(4, 5.4), (8, 5.8), (16, 6.6)]  # five seconds, and a tenth of one a request
    assert seconds_for(280, tiny) == pytest.approx(33.0)
    assert seconds_for(280, tiny[:1]) == pytest.approx(378.0), "one size cannot tell them apart"


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1e4)), min_size=1, max_size=8), st.integers(1, 10**6))
def test_more_requests_take_longer(costs: list[tuple[int, float]], requests: int) -> None:
    assert 0 <= seconds_for(requests, costs) <= seconds_for(requests + 1, costs)
