"""When the next step of a recorded stream is launched before the tokens of the last one are read."""

from __future__ import annotations

import pytest

from lynx_exp.engine.decoding.lead import LaunchAhead


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("host_s", "ends", "pays"), [(0.1, 0.0, True), (0.1, 0.02, False), (0.5, 0.02, True), (0.001, 0.02, False)]
)
def test_leading_pays_where_ends_are_rarer_than_the_host_is_slow(host_s: float, ends: float, pays: bool) -> None:
    """Of steps of one second with lanes of 16: `ends` of a row and step cost 16 times that of what is done."""
    clock = Ticks()
    lead, rows = LaunchAhead(clock=clock), 1000
    assert not lead.pays_off([16, 16], False)
    for _ in range(20):
        lead.read(rows, int(ends * rows))
        clock.now += host_s
        lead.launched()
        clock.now += 1 - host_s
    assert lead.pays_off([16, 16], False) is pays
    assert not lead.pays_off([16, 16], True)


def test_time_in_which_prompts_enter_does_not_count() -> None:
    clock = Ticks()
    lead = LaunchAhead(clock=clock)
    for _ in range(3):
        lead.read(10, 0)
        lead.interrupted()
        clock.now += 9
        lead.launched()
    assert not lead.pays_off([4], False)
