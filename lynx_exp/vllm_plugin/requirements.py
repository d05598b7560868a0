"""What vLLM must be, and how it must be configured, for a policy to act: everything else is refused."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from lynx_exp.vllm_plugin.plugin_settings import WHERE, Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

OLDEST, TOO_NEW = (0, 32), (0, 34)
"""Versions of vLLM whose routers and model runners are known: from the first to below the second."""


def check_version(version: str) -> None:
    """ValueError outside the window."""
    parts = version.split("+")[0].split(".")
    found = tuple(int(part) for part in parts[:2] if part.isdigit())
    if not OLDEST <= found < TOO_NEW:
        window = f">={OLDEST[0]}.{OLDEST[1]},<{TOO_NEW[0]}.{TOO_NEW[1]}"
        raise ValueError(f"vllm={version}: this plugin knows the routers of vllm{window}; install one of those")


def check_config(vllm_config: VllmConfig, settings: Settings) -> None:
    """ValueError, in one line, for whatever would keep the policy from some rows, or mix up whose they are."""
    import vllm
    import vllm.envs as envs

    check_version(vllm.__version__)
    parallel = vllm_config.parallel_config
    refusals = [
        (
            envs.VLLM_BATCH_INVARIANT,
            "VLLM_BATCH_INVARIANT=1: a policy that looks at the batch makes tokens depend on it; unset one of the two",
        ),
        (
            envs.VLLM_MOE_ROUTING_SIMULATION_STRATEGY,
            f"VLLM_MOE_ROUTING_SIMULATION_STRATEGY={envs.VLLM_MOE_ROUTING_SIMULATION_STRATEGY}: replaces the routers",
        ),
        (
            vllm_config.speculative_config is not None,
            "speculative_config: drafted tokens are several rows of a request; not supported",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            f"pipeline_parallel_size={parallel.pipeline_parallel_size}: must be 1, use tensor_parallel_size",
        ),
        (
            getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "prefill_context_parallel_size: rows of one step lie on several ranks; must be 1",
        ),
        (parallel.use_ubatching, "enable_dbo: a step in two halves is two batches; must be off"),
        (
            parallel.use_sequence_parallel_moe,
            "sequence-parallel experts: rows of one step lie on several ranks; use another all2all backend",
        ),
        (
            settings.lanes and parallel.data_parallel_size > 1,
            f"data_parallel_size={parallel.data_parallel_size}: lanes=true needs 1",
        ),
        (
            settings.lanes and getattr(vllm_config, "use_v2_model_runner", False),
            "VLLM_USE_V2_MODEL_RUNNER: lanes=true needs 0: the second model runner warms up with requests of no lane",
        ),
        (
            settings.lanes and vllm_config.scheduler_config.async_scheduling,
            "async_scheduling=True: lanes=true needs False, so that a finished row is not run once more",
        ),
        (
            settings.lanes and not _launches_from_python(vllm_config),
            "cudagraph_mode: lanes=true needs enforce_eager=True, since the rows of each policy change in number",
        ),
    ]
    for refused, why in refusals:
        if refused:
            raise ValueError(f"{WHERE}: {why}")


def _launches_from_python(vllm_config: VllmConfig) -> bool:
    return vllm_config.model_config.enforce_eager or str(vllm_config.device_config.device_type) == "cpu"


def check_runner(runner: object) -> str:
    """The name of the method that orders a step's rows: `_prepare_inputs` of vLLM's first model runner,
    `prepare_inputs` of its second. ValueError if the runner is neither."""
    for name, parameters in (
        ("_prepare_inputs", ["scheduler_output", "num_scheduled_tokens"]),
        ("prepare_inputs", ["scheduler_output", "batch_req_state", "batch_desc", "num_active_loras"]),
    ):
        method = getattr(runner, name, None)
        known = method is not None and list(inspect.signature(method).parameters) == parameters
        if known and all(hasattr(runner, other) for other in ("load_model", "execute_model", "_dummy_run")):
            return name
    raise ValueError(f"{WHERE}: {type(runner).__name__} is not a model runner that this plugin knows")


def check_layer(name: str, runner: MoERunnerInterface) -> None:
    """ValueError if the experts of this layer do not run what its router says."""
    if runner.is_monolithic:
        raise ValueError(
            f"{WHERE}: {name}: {type(runner._quant_method).__name__} routes inside its kernel, where no policy "
            "reaches; choose another with --moe-backend, such as triton"
        )
    if runner.do_naive_dispatch_combine:
        raise ValueError(
            f"{WHERE}: {name}: the tokens of all data-parallel ranks are gathered before routing; choose an "
            "--all2all-backend that routes before it sends"
        )
    compute = getattr(runner.router, "_compute_routing", None)
    wanted = ["hidden_states", "router_logits", "indices_type", "input_ids"]
    if compute is None or list(inspect.signature(compute).parameters) != wanted:
        raise ValueError(f"{WHERE}: {name}: {type(runner.router).__name__} is not a router that this plugin knows")
