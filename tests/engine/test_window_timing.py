"""Which windows are timed, in what turns, and how they are summed up; never how long it took."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine import LaneRun, Window, draw_windows
from lynx_exp.engine.timing.bandwidth import Hardware
from lynx_exp.engine.timing.repeats import ratio_interval, t_quantile, window_times
from lynx_exp.engine.timing.step_bytes import StepBytes
from lynx_exp.engine.timing.window_timing import WindowTiming, time_windows
from lynx_exp.engine.timing.windows import window_of


@pytest.fixture
def run(prompts: list[list[int]]) -> LaneRun:
    """Four slots of six requests, ten tokens each."""
    return LaneRun(
        subtask="t",
        lane=1,
        prompts=prompts[:6],
        tokens=[[5 + n + r for n in range(10)] for r in range(6)],
        slots=[0, 1, 2, 3, 0, 1],
        entered=[0, 0, 0, 0, 9, 9],
    )


class Scripted:
    """A subject whose steps take what it is told, and that writes down its turns."""

    def __init__(self, name: str, ms: list[float], log: list[str]) -> None:
        self.name, self.ms, self.log, self.window = name, ms, log, -1

    def enter(self, window: Window) -> list[float]:
        self.window += 1
        self.steps = len(window.steps)
        self.log.append(f"({self.name})")
        return [2.0] * self.steps

    def settle(self) -> None:
        self.log.append(f"({self.name})")

    def turn(self) -> list[float]:
        self.log.append(self.name)
        return [self.ms[self.window]] * self.steps


def scripted(run: LaneRun, ms: dict[str, list[float]], **asked: float) -> tuple[WindowTiming, list[str]]:
    log: list[str] = []
    subjects = {name: Scripted(name, each, log) for name, each in ms.items()}
    windows = [window_of(run, start, 2) for start in range(len(ms["vanilla"]))]
    return time_windows(subjects, windows, on_step=lambda _: None, **asked), log  # type: ignore[arg-type]


def test_who_goes_first_alternates_within_windows_and_between_them(run: LaneRun) -> None:
    for repeats in (1, 2, 3):
        ms = {"vanilla": [2.0] * 6, "x": [1.0] * 6}
        timing, log = scripted(run, ms, repeats=repeats, least=6, precision=0.5)
        counted = log[2 + 2 * len(timing.warmup_ms["x"]) :]  # after those that enter the first window, and the warm-up
        untimed, turns = counted[::2], counted[1::2]
        assert untimed == [f"({name})" for name in turns], "another's turn leaves other experts in the caches"
        first = [turns[at] for at in range(0, len(turns), 2)]
        assert len(first) == 6 * repeats and abs(first.count("x") - first.count("vanilla")) <= repeats % 2
        of_windows = first[::repeats]
        assert of_windows.count("x") == 3, "a drift within windows would favour one"


def test_windows_go_on_until_the_speedup_is_known_or_none_is_left(run: LaneRun) -> None:
    steady = {"vanilla": [2.0] * 8, "x": [1.0] * 8}
    timing, _ = scripted(run, steady, repeats=2, least=3, precision=0.02)
    assert timing.precision_reached and len(timing.windows) == 3 and timing.speedup("x") == (2.0, 2.0, 2.0)
    assert timing.step_time_ms("x") == (1.0, 1.0, 1.0) and timing.active_experts("x") == 2.0
    lanes_differ = {"vanilla": [2.0, 3.0] * 4, "x": [1.0] * 8}
    timing, _ = scripted(run, lanes_differ, repeats=2, least=3, precision=0.02)
    assert not timing.precision_reached and len(timing.windows) == 8
    speedup, low, high = timing.speedup("x")
    assert speedup == 2.5 and low is not None and high is not None and low < 2.2 and high > 2.8
    with pytest.raises(ValueError, match="measured: vanilla, x"):
        timing.speedup("y")


def test_bytes_and_shares_of_a_windows_steps_by_hand(run: LaneRun) -> None:
    timing, _ = scripted(run, {"vanilla": [2.0, 4.0], "x": [1.0, 1.0]}, repeats=1, least=2, precision=0.5)
    assert timing.bandwidth("x") is None
    read = StepBytes(once=10**6, expert=1000, row=100, position=10, layers=3)
    known = replace(timing, hardware=Hardware(bytes=read, copy_gb_s=2.0))
    seats = [seats for window in known.windows for seats in window.steps]
    each = [10**6 + 3 * 2.0 * 1000 + 100 * len(step) + 10 * sum(seat.position + 1 for seat in step) for step in seats]
    used = known.bandwidth("vanilla")
    assert used is not None and used.step_gb == pytest.approx(sum(each) / 4e9)
    rates = [read / ms / 1e6 for read, ms in zip(each, (2.0, 2.0, 4.0, 4.0), strict=True)]
    assert used.gb_s == pytest.approx(sum(rates) / 4) and used.s_mbu == pytest.approx(sum(rates) / 8)


def test_energy_is_of_turns_of_their_own(engine: Engine, run: LaneRun) -> None:
    """A meter that counts a joule whenever it is read: one after each subject's turns."""
    from lynx_exp.engine.timing.window_batch import WindowBatch
    from lynx_exp.engine.timing.window_timing import measure_windows

    joules, seconds = count(), count()
    policies = {"two": engine.bind(build_policy("lynx_v1_latency", keep_experts=2))}
    timing = torch.inference_mode()(measure_windows)(
        engine.model, engine.routers,
        lambda rows, positions: WindowBatch(engine.model, engine._make_decoder(), rows, positions, 2**20),
        [window_of(run, 0, 2), window_of(run, 7, 2)], policies,
        "decode", None, repeats=1, least=2, precision=0.5, on_step=lambda _: None,
        clock=lambda: float(next(seconds)), meter=lambda: float(next(joules)),
    )  # fmt: skip
    tokens = sum(map(len, timing.windows[-1].steps))
    assert timing.joules_per_token == {"vanilla": 1 / tokens, "two": 1 / tokens}
    assert len(timing.rows) == 2 * 2 * 2


def test_a_vanilla_cell_needs_no_more_than_the_least(run: LaneRun) -> None:
    timing, _ = scripted(run, {"vanilla": [1.0, 2.0, 3.0, 4.0]}, repeats=1, least=3, precision=0.02)
    assert timing.precision_reached and len(timing.windows) == 3


def test_real_steps_of_vanilla_and_policies(engine: Engine, run: LaneRun) -> None:
    windows = list(draw_windows([run], 3, 5, seed=0))
    policies = {"two": build_policy("lynx_v1_latency", keep_experts=2), "control": build_policy("no_drop")}
    produced: list[int] = []
    timing = engine.measure_windows(windows, policies=policies, repeats=2, precision=0.5, on_step=produced.append)
    assert timing.names == ("vanilla", "two", "control") and len(timing.windows) == 5
    assert len(timing.rows) == 3 * 5 * 2 * 3 and all(row.ms > 0 for row in timing.rows)
    assert timing.active_experts("two") == 2.0
    assert timing.active_experts("control") == timing.active_experts("vanilla") > 3
    assert sum(produced) == 3 * 2 * sum(len(seats) for window in windows for seats in window.steps)
    assert not any(module._forward_hooks for module in engine.model.modules())


def test_steps_are_captured_by_rows_and_width(engine: Engine, run: LaneRun) -> None:
    """One capture for each number of rows and width, of vanilla and the policy; replayed in turns of other windows."""
    from lynx_exp.engine.timing.window_batch import WindowBatch
    from lynx_exp.engine.timing.window_timing import measure_windows

    captured = []

    def capture(step):  # type: ignore[no-untyped-def]
        (logits,) = step()
        captured.append(logits.shape[0])
        return lambda: (logits,)

    windows = [window_of(run, 7, 4), window_of(run, 0, 2)]  # four rows, then two; both narrower than 32 positions
    timing = torch.inference_mode()(measure_windows)(
        engine.model,
        engine.routers,
        lambda rows, positions: WindowBatch(engine.model, engine._make_decoder(), rows, positions, 2**20),
        windows,
        {"two": engine.bind(build_policy("lynx_v1_latency", keep_experts=2))},
        "decode",
        None,
        repeats=1,
        least=2,
        precision=0.5,
        on_step=lambda _: None,
        capture=capture,
    )
    assert timing.graphed and captured == [4, 2, 4, 2]
    assert timing.active_experts("two") == 2.0


def test_a_window_is_its_median_ratio_and_the_policys_median_step() -> None:
    assert window_times([[2.0, 4.0], [2.0, 99.0]], [[1.0, 2.0], [1.0, 2.0]]) == (3.0, 1.5)


def test_ratio_of_sums_over_windows() -> None:
    """Against the formula by hand: ratio 3, residuals -1 and 1, and the t quantile of one degree of freedom."""
    ratio, low, high = ratio_interval([(2.0, 1.0), (4.0, 1.0)])
    assert (ratio, low, high) == pytest.approx((3.0, 3.0 - 12.706, 3.0 + 12.706))
    assert ratio_interval([(2.0, 1.0)]) == (2.0, None, None)
    from scipy import stats

    for degrees in (1, 2, 3, 5, 9, 23, 100):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)


@pytest.mark.parametrize(
    "call,message",
    [
        (dict(policies={}, repeats=0), "repeats=0"),
        (dict(policies={}, precision=1.0), "precision=1.0"),
        (dict(policies={"vanilla": build_policy("lynx")}), "name vanilla is taken"),
        (dict(policies={"x": build_policy("top_k", k=3)}), "k=3"),
    ],
)
def test_bad_calls_are_named(engine: Engine, run: LaneRun, call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.measure_windows([window_of(run, 0, 2)], **call)
    with pytest.raises(ValueError, match="windows: none given"):
        engine.measure_windows([], policies={})


def test_copies_of_a_prompt_are_not_timed(engine: Engine, prompts: list[list[int]]) -> None:
    """F3: eight documents were timed as sixty-four."""
    with pytest.raises(ValueError, match="prompts: only 8 of 16 differ; copies choose the same experts"):
        engine.measure(prompts[:8] * 2, batch_size=16, policies={}, new_tokens=2, repeats=1)
