"""backend=vllm: from a config to its engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_exp.config import Config

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine


def open_vllm(config: Config) -> LaneEngine:
    """Load the model of `config` into vLLM, in this process. ValueError, in one line, if that cannot be."""
    from lynx_exp.models import resolve_device, resolve_dtype
    from lynx_exp.vllm_backend import VllmEngine, open_llm

    device = resolve_device(config.device)
    llm = open_llm(
        config.model.id,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        dtype=str(resolve_dtype(config.dtype, device)).removeprefix("torch."),
        device=device.type,
        max_rows=config.pack.max_rows,
        memory_gib=config.pack.memory_gib,
        prefix_caching=config.vllm.prefix_caching,
        max_num_batched_tokens=config.vllm.max_num_batched_tokens,
        enforce_eager=config.vllm.enforce_eager,
        engine_args=config.vllm.engine_args,
    )
    return VllmEngine(llm)
