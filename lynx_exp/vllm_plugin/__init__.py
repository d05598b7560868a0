"""A plugin of stock vLLM: any policy of `lynx_exp.routing` on the decode rows of every step.

    vllm serve MODEL --additional-config '{"lynx": {"policy": "lynx", "alpha": 3, "beta": 2}}'

vLLM calls `register` in each of its processes. It wraps two functions, which look for that setting and otherwise do
what they did. With the setting, one worker's own objects are changed (`worker.py`) and nothing that others share.
Importing this module must not fail: vLLM logs a plugin that cannot be imported, and goes on without it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.worker.worker_base import WorkerWrapperBase

_MARK = "__lynx_exp__"


def register() -> None:
    """The entry point in `vllm.general_plugins`. Called again, it does nothing."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    _wrap(EngineArgs, "create_engine_config", _check_config)
    _wrap(WorkerWrapperBase, "init_device", _install)
    make_llvmlite_bearable()


def _wrap(owner: type, name: str, afterwards: Callable[..., None]) -> None:
    """`afterwards(self, result)` once the method has returned."""
    original = getattr(owner, name)
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapped(self: object, *args: object, **kwargs: object) -> object:
        result = original(self, *args, **kwargs)
        afterwards(self, result)
        return result

    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


def _asked(vllm_config: VllmConfig) -> object:
    """The setting; None without one."""
    more = vllm_config.additional_config
    return more.get("lynx") if isinstance(more, dict) else None


def _check_config(_engine_args: object, vllm_config: VllmConfig) -> None:
    """In the process that the user started: what is wrong is said there, before any other process starts."""
    if _asked(vllm_config) is not None:
        from lynx_exp.vllm_plugin.plugin_settings import Settings
        from lynx_exp.vllm_plugin.requirements import check_config

        check_config(vllm_config, Settings.parse(_asked(vllm_config)))
        make_llvmlite_bearable()


def _install(wrapper: WorkerWrapperBase, _result: object) -> None:
    """In each worker, when it has its device and not yet its model."""
    if _asked(wrapper.vllm_config) is not None:
        from lynx_exp.vllm_plugin.plugin_settings import Settings
        from lynx_exp.vllm_plugin.worker import LynxWorker

        LynxWorker(wrapper.worker, wrapper.vllm_config, Settings.parse(_asked(wrapper.vllm_config))).install()


def make_llvmlite_bearable() -> None:
    """A policy's compiled loops load llvmlite, whose library object takes any attribute for one of its functions, and
    vLLM for CPUs reads `vars` of all that modules hold: give it an answer, or vLLM does not start."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab["__dict__"] = {}
