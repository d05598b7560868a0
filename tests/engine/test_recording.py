"""What records a step, and what is said of a device's kernels: with fakes in place of a device."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.exactness import is_exact
from lynx_exp.engine.decoding.graph import CannotRecord, CudaGraphs, Graphs, Made, nearly_equal, recorded, rerun
from lynx_exp.models.experts import PER_EXPERT_EXACT
from lynx_exp.models.tiny import tiny_model
from lynx_exp.routing import build_policy
from lynx_exp.routing.backends.triton import kernels
from tests.engine.packing import run
from tests.engine.test_captured_stream import recording


class FakeCuda:
    """Notes what is done to it; a graph replays what was run while it was captured."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.pools: list[Any] = []

    def Stream(self) -> FakeCuda:  # noqa: N802  # as torch.cuda has it
        return self

    def current_stream(self) -> FakeCuda:
        return self

    def wait_stream(self, _other: FakeCuda) -> None:
        self.done.append("wait")

    @contextmanager
    def stream(self, _stream: FakeCuda) -> Any:
        self.done.append("aside")
        yield
        self.done.append("back")

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802
        return FakeGraph(self)

    @contextmanager
    def graph(self, captured: FakeGraph, pool: Any = None) -> Any:
        self.pools.append(pool)
        self.done.append("capture")
        yield
        self.done.append("captured")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        self.cuda.done.append("replay")


def test_a_graph_is_warmed_up_aside_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    capture, out = CudaGraphs(), torch.zeros(1)

    def step() -> Made:
        cuda.done.append("step")
        return (out,)

    replay = capture(step)
    warm = ["wait", "aside", *["step"] * 3, "back", "wait"]
    assert cuda.done == [*warm, "capture", "step", "captured", "replay"]
    cuda.done.clear()
    assert replay()[0] is out and replay()[0] is out and cuda.done == ["replay", "replay"]
    cuda.done.clear()
    capture(step)
    assert cuda.done == ["wait", "aside", "step", "back", "wait", "capture", "step", "captured", "replay"]
    assert cuda.pools == [None, "pool"]

    def changes() -> Made:
        return (torch.full((4,), len(cuda.done)),)

    with pytest.raises(CannotRecord, match="something else than the step"):
        recorded(capture, changes)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.arange(8), torch.arange(8), True),
        (torch.arange(8), torch.tensor([0, 1, 2, 3, 4, 5, 6, 9]), True),
        (torch.arange(8), torch.arange(8) + 1, False),
        (torch.randn(50), torch.zeros(50), False),
        (torch.ones(3), torch.ones(3) * 1.01, True),
        (torch.empty(0), torch.empty(0), True),
        (torch.full((4,), torch.nan), torch.ones(4), False),
    ],
)
def test_what_is_alike(one: Tensor, other: Tensor, same: bool) -> None:
    assert nearly_equal(one, other) is same


def test_a_rerun_writes_in_one_place() -> None:
    read = torch.zeros(2)
    replay = rerun(lambda: (read + 1, read.sum()))
    first = replay()
    assert first[0].tolist() == [1, 1]
    read.fill_(2)
    assert replay()[0] is first[0] and first[0].tolist() == [3, 3] and first[1].item() == 4


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("operation not permitted\n when capturing"), CannotRecord),
        (AttributeError("no such module"), CannotRecord),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_a_failed_recording_is_told_as(error: BaseException, told: type[BaseException]) -> None:
    def fails(_step: Any) -> Any:
        raise error

    with pytest.raises(told) as caught:
        recorded(fails, lambda: ())
    if told is CannotRecord:
        assert str(caught.value) == f"{type(error).__name__}: {' '.join(str(error).split())}"


def test_each_width_is_recorded_once() -> None:
    made: list[int] = []

    def capture(step: Any) -> Any:
        made.append(1)
        return rerun(step)

    graphs = Graphs(capture, 2, torch.device("cpu"))
    token_R, position_R = torch.tensor([3, 4]), torch.tensor([5, 6])

    def step() -> Tensor:
        return (graphs.token_R * 100 + graphs.position_R + graphs.key_G).float()[:, None]

    for width in (32, 64, 32):
        for key in (1, 2):
            assert graphs.run(token_R, position_R, key, width, step).tolist() == [[305 + key], [406 + key]]
    assert len(made) == 2


@pytest.mark.parametrize(("leak", "exact"), [("nothing", True), ("beside", False), ("width", False), ("seat", False)])
def test_whether_a_row_depends_on_its_company_is_found_out(engine: Engine, leak: str, exact: bool) -> None:
    """By a decoder that lets a little of one thing into every row."""
    plain = engine._plain_decoder()

    class Leaking:
        def __init__(self, model: Any, slots: Any, cursor: Any) -> None:
            self.inner, self.cursor = plain(model, slots, cursor), cursor  # type: ignore[call-arg]

        def step(self, token_R: Tensor) -> Tensor:
            logits = self.inner.step(token_R)
            more = {
                "nothing": torch.zeros(()),
                "beside": logits.sum(),
                "width": torch.tensor(float(self.cursor.width)),
                "seat": torch.arange(len(logits))[:, None].float(),
            }
            return logits + 1e-3 * more[leak]

    assert is_exact(engine.model, engine.routers, Leaking, 16) is exact


@pytest.mark.slow  # the interpreter takes seconds a step
def test_recorded_steps_of_the_kernels_under_the_interpreter() -> None:
    """As on a GPU: experts as few_rows, selection by the fused kernels, seats of which some are dead."""
    pytest.importorskip("triton")
    model = tiny_model("qwen3_moe")
    model.set_experts_implementation(PER_EXPERT_EXACT)
    engine = Engine(model)
    asked = [Request(prompt_ids=tuple(range(3, 6 + 2 * n)), max_new_tokens=2 + n % 2) for n in range(5)]
    plans = BatchPlan.continuous(5, 2, waves=3), BatchPlan.static(5, 3)
    jobs = [
        engine.job(asked, plan, policy and build_policy(policy[0], **policy[1]))
        for plan, policy in zip(
            (*plans, plans[0]),
            (None, ("lynx", {"alpha": 1.0, "beta": 1}), ("coverage", {"tolerance": 0.3})),
            strict=True,
        )
    ]
    launched = run(engine, jobs)
    model.set_experts_implementation("few_rows")
    with recording(engine, max_rows=8) as steps, kernels.kernel("triton"):
        assert run(engine, jobs) == launched
    assert steps.reason is None and steps.exact
