"""A serving engine with vLLM's shape and none of its code: a scheduler, a model runner of either generation, and a
model whose router logits follow from a request's prompt and the position alone: what a row runs can be recomputed.

`modules()` stands in for the `vllm` package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAYERS, EXPERTS, TOP_K, VOCAB, EOS = 2, 8, 2, 50, 2
CONTEXT: list[Any] = []


def logits_of(prompt: Sequence[int], position: int, layer: int) -> Tensor:
    """`[E]`"""
    rng = np.random.default_rng([*prompt, 1000 + position, layer])
    return torch.from_numpy(rng.normal(0, 2, EXPERTS).astype(np.float32))


def chosen_by_the_router(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mixtral's rule: (weights, experts), best last, since routers need not sort."""
    values, experts = logits.topk(TOP_K, -1)
    return values.flip(-1).softmax(-1), experts.flip(-1).int()


def token_after(prompt: Sequence[int], position: int, experts: Sequence[Tensor]) -> int:
    """What the model says next; `experts` of each layer, which a policy may have changed."""
    said = sum((layer + 1) * int(own.long().sum()) for layer, own in enumerate(experts))
    return (7 * sum(prompt) + 13 * position + 5 * said) % VOCAB


class Params:
    def __init__(self, **given: Any) -> None:
        vars(self).update({"logprobs": None, "extra_args": None} | given)


class Router:
    def __init__(self) -> None:
        self.top_k, self.global_num_experts = TOP_K, EXPERTS
        self.e_score_correction_bias = None

    def _compute_routing(
        self, hidden_states: Tensor, router_logits: Tensor, indices_type: Any, *, input_ids: Any = None
    ) -> tuple[Tensor, Tensor]:
        return chosen_by_the_router(router_logits.float())


class MoERunnerInterface(nn.Module):
    def __init__(self, router: Any) -> None:
        super().__init__()
        self.router = router
        self.is_monolithic = self.do_naive_dispatch_combine = False
        self.moe_config = SimpleNamespace(hidden_dim=4)
        self._quant_method = SimpleNamespace(moe_kernel=None)


class Block(nn.Module):
    def __init__(self, router: Any) -> None:
        super().__init__()
        self.gate = nn.Linear(4, EXPERTS, bias=False)
        self.experts = MoERunnerInterface(router)


@dataclass
class Held:
    """A request in the engine."""

    name: str
    prompt: tuple[int, ...]
    params: Any
    tokens: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


class Runner:
    """vLLM's first model runner, in outline. `ran`: of every step, the rows with their (request, position, decode) and,
    a layer, weights and experts."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.device, self.max_num_tokens = engine, torch.device("cpu"), engine.budget + engine.pad
        self.ran: list[tuple[list[tuple[str, int]], list[tuple[Tensor, Tensor]]]] = []
        self.calls = 0
        self.skip_layer: int | None = None
        """A layer that does not ask its router."""
        self.gathered = 0
        """Rows that other ranks add before routing."""

    def load_model(self) -> None:
        self.model = nn.Sequential(*(Block(self.engine.router()) for _ in range(LAYERS)))

    def get_model(self) -> nn.Module:
        return self.model

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> None:
        held = self.engine.held
        names = list(scheduler_output.num_scheduled_tokens)
        computed = np.array([held[name].computed for name in names])
        self.input_batch = SimpleNamespace(req_ids=names, num_computed_tokens_cpu=computed, num_reqs=len(names))

    def execute_model(self, scheduler_output: Any) -> None:
        scheduled = scheduler_output.num_scheduled_tokens
        if not scheduled:
            return
        self._ready(scheduler_output, np.array(list(scheduled.values())))
        rows = [
            (name, self.engine.held[name].computed + at) for name, count in scheduled.items() for at in range(count)
        ]
        self.ran.append((rows, self._forward(rows)))

    def _ready(self, scheduler_output: Any, scheduled: np.ndarray) -> None:
        self._prepare_inputs(scheduler_output, scheduled)

    def _dummy_run(self, rows: int) -> list[tuple[Tensor, Tensor]]:
        return self._forward([("nobody", at) for at in range(rows)])

    def _forward(self, rows: list[tuple[str, int]]) -> list[tuple[Tensor, Tensor]]:
        padded = -(-len(rows) // self.engine.pad) * self.engine.pad
        CONTEXT[:] = [SimpleNamespace(no_compile_layers=self.engine.static, is_padding=torch.zeros(padded).bool())]
        made = []
        for layer, block in enumerate(self.model):
            own = [
                logits_of(self.engine.held[name].prompt if name in self.engine.held else (9,), position, layer)
                for name, position in rows
            ]
            junk = torch.randn(padded - len(rows) + self.gathered, EXPERTS) * 9
            logits = torch.cat([torch.stack(own), junk])
            router = block.experts.router
            if layer == self.skip_layer:
                made.append(chosen_by_the_router(logits))
            else:
                made.append(router._compute_routing(torch.zeros(len(logits), 4), logits, torch.int32))
        return made


class SecondRunner(Runner):
    """vLLM's second model runner: the batch is what the method returns, in an order of its own."""

    _prepare_inputs = None  # type: ignore[assignment]

    def prepare_inputs(
        self, scheduler_output: Any, batch_req_state: Any, batch_desc: Any, num_active_loras: int
    ) -> Any:
        names = list(scheduler_output.num_scheduled_tokens)
        return SimpleNamespace(
            req_ids=names,
            num_computed_tokens_np=np.array([self.engine.held[name].computed for name in names]),
            num_scheduled_tokens=np.array(list(scheduler_output.num_scheduled_tokens.values())),
        )

    def _ready(self, scheduler_output: Any, scheduled: np.ndarray) -> None:
        self.prepare_inputs(scheduler_output, None, None, 0)


class Engine:
    """Scheduler, worker and front in one; `LLM` gives it the outer shape."""

    def __init__(
        self,
        *,
        second: bool = False,
        budget: int = 64,
        max_rows: int = 16,
        pad: int = 1,
        blocks: int = 1000,
        router: Callable[[], Any] = Router,
    ) -> None:
        self.budget, self.max_rows, self.pad, self.router = budget, max_rows, pad, router
        self.held: dict[str, Held] = {}
        self.waiting: list[str] = []
        self.running: list[str] = []
        self.static: dict[str, Any] = {}
        self.steps = 0
        self.preempt_at: set[int] = set()
        """Steps before which the youngest running request loses what was computed."""
        self.one_prompt_a_step = False
        self._new: list[str] = []
        self._gone: list[str] = []
        self.vllm_config = config(budget=budget, max_rows=max_rows, blocks=blocks, static=self.static)
        self.model_config = self.vllm_config.model_config
        self.runner = (SecondRunner if second else Runner)(self)
        self.worker = SimpleNamespace(model_runner=self.runner, rank=0, shutdown=lambda: None)

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        assert name not in self.held
        self.held[name] = Held(name=name, prompt=tuple(prompt["prompt_token_ids"]), params=params)
        self.waiting.append(name)

    def abort_request(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self.held:
                self._drop(name)

    def _drop(self, name: str) -> None:
        del self.held[name]
        self._gone.append(name)
        for queue in (self.running, self.waiting, self._new):
            if name in queue:
                queue.remove(name)

    def has_unfinished_requests(self) -> bool:
        return bool(self.held)

    def _schedule(self) -> dict[str, int]:
        if self.steps in self.preempt_at and self.running:
            name = self.running.pop()
            self.held[name].computed = 0
            self.waiting.insert(0, name)
        left, scheduled = self.budget, {}
        for name in self.running:
            held = self.held[name]
            scheduled[name] = min(held.length - held.computed, left)
            left -= scheduled[name]
        while self.waiting and left and len(self.running) < self.max_rows:
            name = self.waiting.pop(0)
            held = self.held[name]
            scheduled[name] = min(held.length - held.computed, left)
            left -= scheduled[name]
            self.running.append(name)
            self._new.append(name)
            if self.one_prompt_a_step:
                break
        return {name: count for name, count in scheduled.items() if count}

    def step(self) -> list[Any]:
        scheduled = self._schedule()
        self.steps += 1
        new = [
            SimpleNamespace(
                req_id=name, prompt_token_ids=list(self.held[name].prompt), sampling_params=self.held[name].params
            )
            for name in self._new
        ]
        output = SimpleNamespace(
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=sum(scheduled.values()),
            scheduled_new_reqs=new,
            finished_req_ids=set(self._gone),
        )
        self._new, self._gone = [], []
        self.runner.execute_model(output)
        said = []
        start = 0
        for name, count in scheduled.items():
            held, start = self.held[name], start + count
            held.computed += count
            if held.computed < held.length:
                continue
            experts = [layer[1][start - 1] for layer in self.runner.ran[-1][1]]
            token = token_after(held.prompt, held.computed - 1, experts)
            forced = (held.params.extra_args or {}).get("lynx_forced")
            ranked = SimpleNamespace(logprob=-float(token % 5) / 4, rank=1 + token % 3)
            if forced:
                token = forced[len(held.tokens)]
            held.tokens.append(token)
            logprobs = None if held.params.logprobs is None else [{token: ranked}]
            said.append(
                SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=[token], logprobs=logprobs)])
            )
            if len(held.tokens) == held.params.max_tokens:
                self._drop(name)
        return said


class LLM:
    def __init__(self, engine: Engine) -> None:
        self.llm_engine = engine

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return [getattr(self.llm_engine.worker, method)(*args)]

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(
            eos_token_id=EOS, decode=lambda ids, skip_special_tokens: "".join(chr(65 + token) for token in ids)
        )


def config(
    *, budget: int = 64, max_rows: int = 16, blocks: int = 1000, static: dict[str, Any] | None = None, **other: Any
) -> Any:
    """A vLLM configuration; `other` fields of any part."""
    parts = {
        "parallel_config": {
            "pipeline_parallel_size": 1,
            "prefill_context_parallel_size": 1,
            "data_parallel_size": 1,
            "use_ubatching": False,
            "use_sequence_parallel_moe": False,
        },
        "model_config": {
            "enforce_eager": True,
            "dtype": torch.float32,
            "model": "lynx_tiny",
            "max_model_len": 200,
            "try_get_generation_config": lambda: {"eos_token_id": EOS},
            "get_vocab_size": lambda: VOCAB,
        },
        "scheduler_config": {
            "max_num_seqs": max_rows,
            "max_num_batched_tokens": budget,
            "async_scheduling": False,
        },
        "cache_config": {"block_size": 4, "num_gpu_blocks": blocks + 1, "enable_prefix_caching": False},
        "device_config": {"device_type": "cpu"},
        "compilation_config": {"static_forward_context": {} if static is None else static},
    }
    for fields in parts.values():
        fields |= {name: other.pop(name) for name in list(other) if name in fields}
    made = {name: SimpleNamespace(**fields) for name, fields in parts.items()}
    return SimpleNamespace(**made, **({"speculative_config": None, "additional_config": {}} | other))


class EngineArgs:
    def __init__(self, vllm_config: Any) -> None:
        self._config = vllm_config

    def create_engine_config(self) -> Any:
        return self._config


class WorkerWrapperBase:
    def __init__(self, worker: Any, vllm_config: Any) -> None:
        self.worker, self.vllm_config = worker, vllm_config

    def init_device(self) -> None:
        self.worker.device_ready = True


def modules() -> dict[str, ModuleType]:
    """For `sys.modules`. The classes that the plugin changes are made anew."""
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": "0.32.0", "SamplingParams": Params},
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False, "VLLM_MOE_ROUTING_SIMULATION_STRATEGY": ""},
        "vllm.forward_context": {"get_forward_context": lambda: CONTEXT[0]},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(DELTA=1)},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": type("EngineArgs", (EngineArgs,), dict(vars(EngineArgs)))},
        "vllm.v1": {},
        "vllm.v1.worker": {},
        "vllm.v1.worker.worker_base": {
            "WorkerWrapperBase": type("WorkerWrapperBase", (WorkerWrapperBase,), dict(vars(WorkerWrapperBase)))
        },
        "vllm.model_executor": {},
        "vllm.model_executor.layers": {},
        "vllm.model_executor.layers.fused_moe": {},
        "vllm.model_executor.layers.fused_moe.runner": {},
        "vllm.model_executor.layers.fused_moe.runner.moe_runner_interface": {"MoERunnerInterface": MoERunnerInterface},
    }
    made = {name: ModuleType(name) for name in contents}
    for name, content in contents.items():
        vars(made[name]).update(content)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, made[name])
    return made
