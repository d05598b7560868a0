"""`vllm.LLM` with the plugin in its lanes mode, in this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lynx_exp.models import locate
from lynx_exp.vllm_plugin import make_llvmlite_bearable, register
from lynx_exp.vllm_plugin.requirements import check_version

if TYPE_CHECKING:
    from vllm import LLM

CPU_CACHE_GIB = 2.0
"""For keys and values where nothing else is said; vLLM would take nearly all of the machine."""

_VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: nothing happens between two steps of ours
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one that the tests run with
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def check_installed() -> None:
    """ValueError, in one line, if there is no vLLM or one that the plugin does not know."""
    if find_spec("vllm") is None:
        raise ValueError(
            "backend=vllm: vllm is not installed here; `pip install '.[vllm]'` in an environment of its own, "
            "since it pins torch"
        )
    from vllm.version import __version__

    check_version(__version__)


def open_llm(
    model: str,
    *,
    dtype: str,
    device: str,
    max_rows: int,
    memory_gib: float | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    prefix_caching: bool = False,
    max_num_batched_tokens: int = 16384,
    enforce_eager: bool = True,
    engine_args: Mapping[str, object] | None = None,
) -> LLM:
    """A `vllm.LLM`. ValueError, in one line, if it cannot be made, or runs elsewhere than on `device` (cpu or cuda)."""
    check_installed()
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise ValueError("VLLM_ENABLE_V1_MULTIPROCESSING=1: backend=vllm steps the engine itself; set it to 0")
    register()
    make_llvmlite_bearable()
    from vllm import LLM
    from vllm.platforms import current_platform

    if current_platform.device_type != device:
        raise ValueError(f"device={device}: this vllm runs on {current_platform.device_type}")
    arguments = dict(engine_args or {})
    if memory_gib is not None or device == "cpu":
        arguments["kv_cache_memory_bytes"] = int((memory_gib or CPU_CACHE_GIB) * 2**30)
    try:
        return LLM(
            model=locate(model),
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            max_num_seqs=max_rows,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=prefix_caching,
            enforce_eager=enforce_eager,
            async_scheduling=False,
            disable_log_stats=True,
            logits_processors=["lynx_exp.vllm_plugin.forced:Forced"],
            additional_config={"lynx": {"lanes": True}},
            **{"use_tqdm_on_load": False, "seed": 0} | arguments,
        )
    except TypeError as error:
        raise ValueError(f"vllm.engine_args: {error}") from error
