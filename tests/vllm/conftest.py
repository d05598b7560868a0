"""The fake serving engine with the plugin in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.vllm import fake_vllm


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake package, in place of vLLM's."""
    made = fake_vllm.modules()
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    yield made["vllm"]


Start = Callable[..., fake_vllm.Engine]


@pytest.fixture
def start(fake: Any) -> Start:
    """`start({...the setting...}, engine=...)`: an engine whose worker has its model, as vLLM brings it up."""
    return bring_up


def bring_up(setting: dict[str, Any] | None, **how: Any) -> fake_vllm.Engine:
    from lynx_exp.vllm_plugin import register

    register()
    engine = fake_vllm.Engine(**how)
    if setting is not None:
        engine.vllm_config.additional_config = {"lynx": setting}
    base = sys.modules["vllm.v1.worker.worker_base"].WorkerWrapperBase
    base(engine.worker, engine.vllm_config).init_device()
    engine.runner.load_model()
    return engine


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """One engine after another in this process."""
    from lynx_exp.vllm_backend import startup as opening
    from lynx_exp.vllm_plugin import make_llvmlite_bearable, register

    patch = pytest.MonkeyPatch()
    for name, value in opening._VARIABLES.items():
        patch.setenv(name, value)
    patch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.set_num_threads
    register()
    make_llvmlite_bearable()
    yield
    torch.set_num_threads = threads  # vLLM replaces it
    patch.undo()
