"""The way of computing experts that is fastest by the clock; the model's own way comes back whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import lynx_exp.engine.timing.fastest_experts as fastest
from lynx_exp import Engine, build_policy
from lynx_exp.engine.decoding.graph import Made, Step, rerun
from lynx_exp.engine.decoding.steps import Steps
from lynx_exp.engine.timing.fastest_experts import CANDIDATES, fastest_experts
from lynx_exp.models.experts import PER_EXPERT, PER_EXPERT_EXACT, using_experts


def way(engine: Engine) -> str | None:
    return engine.model.config.get_text_config()._experts_implementation


class Clock:
    """Steps take as long as it is told of the way in use; the first round of each way takes a second a step."""

    def __init__(self, engine: Engine, ms: dict[str, float]) -> None:
        self.engine, self.ms, self.now, self.reads = engine, ms, 0.0, dict.fromkeys(ms, 0)

    def __call__(self) -> float:
        name = str(way(self.engine))
        self.reads[name] += 1
        timed = self.reads[name] - fastest._STEPS
        if timed <= 0:
            self.now += 1.0
        elif timed % 2 == 0:  # read before a step and after it
            self.now += self.ms[name] / 1e3
        return self.now


@pytest.fixture
def auto(engine: Engine) -> Iterator[Engine]:
    engine._fastest.clear()
    yield engine
    engine._fastest.clear()
    engine.auto_experts = True


@pytest.mark.parametrize("winner", CANDIDATES["cpu"])
def test_the_smaller_median_wins_and_the_first_round_does_not_count(
    auto: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    before = way(auto)
    ms = {name: 2.0 if name == winner else 3.0 for name in CANDIDATES["cpu"]}
    clock = Clock(auto, ms)
    monkeypatch.setattr(fastest, "perf_counter", clock)
    name, times = auto._fastest_experts(prompts[:4])
    assert name == winner
    assert times == pytest.approx(ms)
    assert way(auto) == before == PER_EXPERT_EXACT
    assert set(clock.reads.values()) == {fastest._STEPS * (1 + 2 * (fastest._ROUNDS - 1))}
    monkeypatch.setattr(fastest, "perf_counter", lambda: pytest.fail("tried twice for the same number of rows"))
    assert auto._fastest_experts(prompts[4:8]) == (name, times)


def test_measure_runs_the_winner_and_says_so(
    auto: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, used = way(auto), set()
    monkeypatch.setattr(fastest, "perf_counter", Clock(auto, {PER_EXPERT: 5.0, "grouped_mm": 1.0}))
    timing = auto.measure(
        prompts,
        batch_size=2,
        policies={"control": build_policy("no_drop")},
        new_tokens=2,
        repeats=2,
        on_step=lambda _tokens: used.add(way(auto)),
    )
    assert timing.experts_implementation == "grouped_mm" and used == {"grouped_mm"}
    assert timing.candidates_ms == pytest.approx({PER_EXPERT: 5.0, "grouped_mm": 1.0})
    assert way(auto) == before


def test_a_way_given_at_load_is_kept(auto: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    auto.auto_experts = False
    monkeypatch.setattr(fastest, "perf_counter", lambda: pytest.fail("nothing to try"))
    assert auto._fastest_experts(prompts[:2]) == (PER_EXPERT_EXACT, {})


def test_the_models_own_way_comes_back_after_an_exception(auto: Engine, prompts: list[list[int]]) -> None:
    before = way(auto)
    with pytest.raises(KeyError, match="planted"), using_experts(auto.model, "grouped_mm"):
        assert way(auto) == "grouped_mm"
        raise KeyError("planted")
    assert way(auto) == before

    class Failing:
        """Fails at its third step."""

        slots, steps = True, 0

        def __init__(self, *given: Any) -> None:
            self.inner = auto._lane_alone(*given)
            self.prefill, self.rewind = self.inner.prefill, self.inner.rewind

        def step(self, token_R: Any) -> Any:
            self.steps += 1
            if self.steps == 3:
                raise RuntimeError("planted")
            return self.inner.step(token_R)

    with pytest.raises(RuntimeError, match="planted"):
        fastest_experts(auto.model, Failing, prompts[:2])
    assert way(auto) == before

    def tired(_tokens: int) -> None:
        raise RuntimeError("planted in measure")

    with pytest.raises(RuntimeError, match="planted in measure"):
        auto.measure(prompts, batch_size=2, policies={}, new_tokens=2, repeats=2, on_step=tired)
    assert way(auto) == before


@pytest.mark.parametrize("winner", CANDIDATES["cpu"])
def test_recorded_steps_are_compared_where_steps_are_recorded(
    auto: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    """Launched from Python the other way would win; and each is recorded once, in the round that does not count."""
    ms = {name: 2.0 if name == winner else 3.0 for name in CANDIDATES["cpu"]}
    now, recorded = [0.0], list[str]()

    def capture(step: Step) -> Step:
        name = str(way(auto))
        recorded.append(name)
        replay = rerun(step)

        def timed() -> Made:
            now[0] += ms[name] / 1e3 + (1.0 if now[0] < len(recorded) else 0.0)
            return replay()

        return timed

    monkeypatch.setattr(fastest, "perf_counter", lambda: now[0])
    monkeypatch.setattr(auto, "steps", Steps("auto", auto.model, auto.routers))
    auto.steps.record_with(capture)
    name, times = auto._fastest_experts(prompts[:4])
    assert name == winner and times == pytest.approx(ms) and recorded == list(CANDIDATES["cpu"])


def test_if_one_way_cannot_be_recorded_all_are_launched(
    auto: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(step: Step) -> Step:
        if way(auto) == "grouped_mm":
            raise RuntimeError("planted")
        return rerun(step)

    clock = Clock(auto, {PER_EXPERT: 5.0, "grouped_mm": 1.0})
    clock.reads[PER_EXPERT] = -2 * fastest._STEPS  # those of the round that was given up
    monkeypatch.setattr(fastest, "perf_counter", clock)
    monkeypatch.setattr(auto, "steps", Steps("auto", auto.model, auto.routers))
    auto.steps.record_with(capture)
    assert auto._fastest_experts(prompts[:2])[0] == "grouped_mm"


@pytest.mark.parametrize("name", [None, PER_EXPERT_EXACT])
def test_the_same_way_touches_nothing(auto: Engine, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    monkeypatch.setattr(auto.model, "set_experts_implementation", lambda _name: pytest.fail("set again"))
    with using_experts(auto.model, name):
        assert way(auto) == PER_EXPERT_EXACT
