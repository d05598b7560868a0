"""Lanes, plans and timing over `vllm.LLM` in this process: the same questions as `lynx_exp.engine`, asked of a serving
engine."""

from lynx_exp.vllm_backend.startup import open_llm
from lynx_exp.vllm_backend.vllm_engine import VllmEngine

__all__ = ["VllmEngine", "open_llm"]
