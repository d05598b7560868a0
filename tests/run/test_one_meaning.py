"""What means the same is the same cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.config import Config, TaskConfig
from lynx_exp.config.cell import _joined
from lynx_exp.routing import layer_range

PARTS = st.lists(
    st.one_of(st.integers(0, 11).map(str), st.builds("{}:{}".format, st.integers(0, 5), st.integers(6, 12)))
)


@pytest.mark.parametrize("layers", ["0,1", [1, 0], "0:2", [0, 1], ["0:2"], "1,0,1", "0:1,1:2"])
def test_layers(layers: Any, config: Callable[..., Config]) -> None:
    assert config(layers=layers).layers == "0:2"


@pytest.mark.parametrize("layers", ["0", "3:", "0:1", "0:1,2:", "1:2", "0,4:8", ":2", "1-3", "-1"])
def test_what_is_one_form_already_stays(layers: str, config: Callable[..., Config]) -> None:
    """Cells of earlier studies keep their names."""
    assert config(layers=layers).layers == layers


@given(parts=PARTS.filter(bool), random=st.randoms())
def test_the_order_of_layers_says_nothing(parts: list[str], random: Any) -> None:
    mixed = list(parts)
    random.shuffle(mixed)
    assert layer_range(_joined(parts), 12) == layer_range(_joined(mixed), 12) == layer_range(",".join(parts), 12)


@pytest.mark.parametrize(
    ("given_weights", "weights"),
    [([2, 2], [1, 1]), ([0.5, 0.5], [1, 1]), ([3, 1], [3, 1]), ([0.1, 0.3], [1, 3]), ([1, 3.14159], [1, 3.14159])],
)
def test_weights(given_weights: list[float], weights: list[float]) -> None:
    assert TaskConfig(name="mix", subtasks=["a", "b"], weights=given_weights).weights == weights
