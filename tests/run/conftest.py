"""What the launcher's tests run on: a fake engine, or a small random model."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.engine import Engine
from lynx_exp.run.outcomes import Report
from lynx_exp.run.run_cells import run_cells
from tests.run.fakes import TINY, FakeEngine, FakeTask
from tests.run.lab import GRID, SMALL, Lab, found


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """Configs of small cells: `config(policy={...}, subtasks=[...], batch_size=...)`."""

    def make(policy: dict[str, Any] | None = None, subtasks: tuple[str, ...] = ("gen",), **fields: Any) -> Config:
        return Config(
            model=fields.pop("model", None) or ModelConfig(kind="random", id="mixtral", config=dict(TINY)),
            policy=policy or {"name": "vanilla"},
            task=TaskConfig(name="task", subtasks=list(subtasks)),
            tracker=fields.pop("tracker", None) or TrackerConfig(),
            results=str(tmp_path / "results"),
            batch_size=fields.pop("batch_size", 2),
            batching=fields.pop("batching", "static"),  # the fake engine's lanes are of two steps, refilled or not
            device="cpu",
            **fields,
        )

    return make


@pytest.fixture
def bench() -> Any:
    """`bench.run(configs, packed=True)` on `bench.engine`; `bench.text` is what was printed."""

    def load(name: str, limit: int | None = None, settings: object = None) -> Any:
        if name not in ("gen", "choice"):
            raise ValueError(f"task.subtasks={name}: unknown; known: gen, choice")
        return FakeTask(name, "generate" if name == "gen" else "choice", limit or 5)

    out = StringIO()
    bench = SimpleNamespace(engine=FakeEngine(), load=load)

    def open_engine(_config: Config) -> Any:
        bench.engine.opened += 1
        return bench.engine

    def run(configs: list[Config], *, packed: bool = True) -> Report:
        console = Console(file=out, width=200)
        return run_cells(configs, packed=packed, console=console, open_engine=open_engine, load=bench.load)

    bench.run = run
    bench.text = lambda: out.getvalue()
    return bench


@pytest.fixture(scope="session")
def model() -> Any:
    return Engine.from_config("mixtral", SMALL, device="cpu").model


@pytest.fixture
def lab(model: Any, tmp_path: Path) -> Lab:
    return Lab(model=model, root=tmp_path)


@pytest.fixture(scope="session")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The grid, run without a fault."""
    lab = Lab(model=model, root=tmp_path_factory.mktemp("whole"))
    folder = lab.folder()
    assert lab.run(GRID, folder).failed == 0
    return found(folder)
