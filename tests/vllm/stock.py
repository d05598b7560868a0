"""What the tests inside stock vLLM share. Importing this skips a module where there is no vLLM."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_exp.routing import build_policy, policy_names

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: `make test-vllm`", allow_module_level=True)

MARKS = [
    pytest.mark.filterwarnings("default"),  # vLLM and what it imports warn about themselves
    pytest.mark.usefixtures("environment"),
]
QUARTER = {"policy": "lynx_v1_latency", "keep_experts": 4}
PROMPTS = [f"Question: Tom has {3 + i} apples and buys {2 * i} more. How many?\nAnswer:" for i in range(8)]
REQUIRED = {"lynx_v1_latency": {"keep_experts": 4}, "random_keep": {"keep_experts": 5}}
POLICIES = {name: build_policy(name, **REQUIRED.get(name, {})) for name in policy_names() if name != "vanilla"}


@contextmanager
def started(setting: dict[str, Any] | None, model: str = "lynx_tiny", **more: Any) -> Iterator[Any]:
    """A `vllm.LLM` with the setting."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    from lynx_exp.models import locate

    given = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "kv_cache_memory_bytes": 2**28,
        "use_tqdm_on_load": False,
    }
    extra = {} if setting is None else {"additional_config": {"lynx": setting}}
    llm = LLM(model=locate(model), **given | extra | more)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def worker_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def say(llm: Any, prompts: list[str] = PROMPTS, tokens: int = 20) -> list[list[int]]:
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, asked, use_tqdm=False)]


def run_script(body: str, folder: Path, **environment: str) -> str:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(body))
    more = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | more | environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


class Spy:
    """What a worker's layers were given and what they ran."""

    def __init__(self, lynx: Any) -> None:
        self.seen: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Any]] = []
        route = lynx.route

        def watched(number, width, logits, weights, experts, padded):  # noqa: PLR0913
            made = route(number, width, logits, weights, experts, padded)
            if lynx._rows is not None:
                decode = torch.from_numpy(lynx._rows.decode_T)
                self.seen.append(
                    (number, logits.clone(), weights.clone(), experts.clone(), *made, (decode, lynx._rows))
                )
            return made

        lynx.route = watched


def as_sets(experts, weights):
    return [
        sorted((int(e), round(float(w), 5)) for e, w in zip(*row, strict=True) if w != 0)
        for row in zip(experts.tolist(), weights.tolist(), strict=True)
    ]


def mean(values):
    return sum(values) / len(values)
