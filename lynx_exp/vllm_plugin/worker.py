"""One vLLM worker with a policy: its model runner tells who the rows are, its routers ask what to run.

T token rows, E experts, K top-k, W slots of a token after a policy.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.nn.functional import pad

from lynx_exp.models import bind, find_calibration, intercepted
from lynx_exp.routing import Policy, Routing, layer_range
from lynx_exp.vllm_plugin import ops
from lynx_exp.vllm_plugin.buffers import Buffers, Part
from lynx_exp.vllm_plugin.layers import Layer, Route, find_layers, reroute
from lynx_exp.vllm_plugin.plugin_settings import VANILLA, WHERE, Acting, Settings
from lynx_exp.vllm_plugin.record import LaneCount, Record, say
from lynx_exp.vllm_plugin.requirements import check_config, check_runner
from lynx_exp.vllm_plugin.scheduled_rows import NOBODY, Seats, StepRows, lanes_of_requests, one_lane

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.worker_base import WorkerBase

_WARM_UP = ("_warmup_", "_v2_mixed_warmup")
"""Names of the requests that vLLM's second model runner makes up to warm itself up."""


class LynxWorker:
    """Belongs to its worker, as `worker.lynx`. Changes objects of this worker alone."""

    def __init__(self, worker: WorkerBase, vllm_config: VllmConfig, settings: Settings) -> None:
        self._worker, self._vllm_config, self._settings = worker, vllm_config, settings
        self._layers: list[Layer] = []
        self._bound: dict[Acting, tuple[Policy | None, frozenset[int]]] = {}
        self._buffers: Buffers
        self._rows: StepRows | None = None
        """Of the step that is being made; None: nobody has said."""
        self._dummy = False
        """Whether the rows that run are nobody's."""
        self._warms_up = False
        self._routed = 0
        """Layers that asked in this step."""
        acting = settings.acting
        self._seats = Seats(lanes_of_requests({}) if acting is None else one_lane(acting))
        label = "policies of the requests" if acting is None else acting.label
        self._first = getattr(worker, "rank", 0) == 0
        self.record = Record(label, keep=settings.lanes, report=settings.report if self._first else None)

    def install(self) -> None:
        """Between the worker's device and its model. ValueError for what this plugin does not know."""
        check_config(self._vllm_config, self._settings)
        runner = self._runner = self._worker.model_runner
        prepare = check_runner(runner)
        ops.register()
        originals = {name: getattr(runner, name) for name in ("load_model", "execute_model", "_dummy_run", prepare)}

        def load_model(*args: object, **kwargs: object) -> object:
            result = originals["load_model"](*args, **kwargs)
            self._loaded()
            return result

        def execute_model(scheduler_output: SchedulerOutput, *args: object, **kwargs: object) -> object:
            if kwargs.get("dummy_run"):
                return originals["execute_model"](scheduler_output, *args, **kwargs)
            self._begin(scheduler_output)
            result = originals["execute_model"](scheduler_output, *args, **kwargs)
            self._end(scheduler_output)
            return result

        def prepare_inputs(scheduler_output: SchedulerOutput, *args: Any, **kwargs: object) -> object:
            result = originals[prepare](scheduler_output, *args, **kwargs)
            if prepare == "prepare_inputs":
                self._announce(result.req_ids, result.num_computed_tokens_np, result.num_scheduled_tokens)
            else:
                batch = runner.input_batch
                self._announce(batch.req_ids, batch.num_computed_tokens_cpu[: batch.num_reqs], args[0])
            return result

        def dummy_run(*args: object, **kwargs: object) -> object:
            self._dummy = True
            self._buffers.fill(NOBODY, self._acts(NOBODY))
            try:
                return originals["_dummy_run"](*args, **kwargs)
            finally:
                self._dummy = False

        runner.load_model, runner.execute_model, runner._dummy_run = load_model, execute_model, dummy_run
        setattr(runner, prepare, prepare_inputs)
        self._worker.lynx = self
        self._worker.lynx_record, self._worker.lynx_steps = self.summary, self.take
        self._worker.lynx_bind = self.bind
        shutdown = self._worker.shutdown

        def close_and_shutdown(*args: object, **kwargs: object) -> object:
            self.close()
            return shutdown(*args, **kwargs)

        self._worker.shutdown = close_and_shutdown
        own = WeakMethod(self.close)
        atexit.register(lambda: (close := own()) and close())

    def summary(self) -> dict[str, object]:
        """What was counted so far, of all requests: `LLM.collective_rpc("lynx_record")`."""
        first = self._layers[0]
        return self.record.summary() | {
            "layers": len(self._layers),
            "num_experts": first.num_experts,
            "top_k": first.top_k,
            "experts": first.experts,
        }

    def bind(self, given: Mapping[str, object]) -> None:
        """ValueError, with the reason, if this model cannot run what a request would bring: `lynx_bind`."""
        policy, _ = self._bind(Acting.parse(given, "extra_args.lynx"))
        width, top_k = self._width(policy), self._layers[0].top_k
        if policy is not None and width > top_k and not self._vllm_config.model_config.enforce_eager:
            raise ValueError(
                f"{WHERE}: {policy.label}: gives a token up to {width} experts, and lanes=true compiles for {top_k}; "
                "set enforce_eager=True"
            )

    def take(self) -> list[LaneCount]:
        """Decode steps of the lanes since the last call: `LLM.collective_rpc("lynx_steps")`."""
        return self.record.take()

    def close(self) -> None:
        """At the worker's end; done twice, it says nothing more."""
        if self._first and not getattr(self, "_closed", False):
            acting = self._settings.acting
            self.record.close(acts=acting is not None and acting.policy is not None and acting.phases == "decode")
        self._closed = True

    # From model to policy.

    def _loaded(self) -> None:
        config, runner = self._vllm_config, self._runner
        device, dtype = runner.device, config.model_config.dtype
        self._layers = find_layers(runner.get_model(), dtype, device)
        scheduler = config.scheduler_config
        lanes = scheduler.max_num_seqs if self._settings.lanes else 1
        rows = max(scheduler.max_num_batched_tokens, getattr(runner, "max_num_tokens", 0))
        experts = max(layer.num_experts for layer in self._layers)
        self._buffers = Buffers(rows, lanes, lanes, len(self._layers), experts, device)
        ops.WORKERS[id(config.compilation_config.static_forward_context)] = self
        width = self._layers[0].top_k
        if self._settings.acting is not None:
            policy, layers = self._bind(self._settings.acting)
            width = self._width(policy)
            where = f"{len(layers)} of {len(self._layers)} layers, phases={self._settings.acting.phases}"
            if self._first:
                say(f"{self.record.label} in {where}")
        elif self._first:
            say(f"policies by request in {len(self._layers)} layers")
        for layer in self._layers:
            reroute(layer, self._opaque(layer.layer, width))
        self._buffers.fill(NOBODY, self._acts(NOBODY))

    @staticmethod
    def _opaque(layer: int, width: int) -> Route:
        def route(logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ops.lynx_exp.route(logits, weights, experts, layer, width)

        return route

    def _bind(self, acting: Acting) -> tuple[Policy | None, frozenset[int]]:
        """The policy as this model runs it, and the layers where it acts."""
        if acting not in self._bound:
            policy = acting.policy
            if policy is not None:
                try:
                    model = self._vllm_config.model_config.model
                    policy = bind(policy, self._layers, find_calibration(model))
                except ValueError as error:
                    raise ValueError(f"{WHERE}: {error}") from error
            count = len(self._layers)
            layers = frozenset(range(count)) if acting.layers is None else layer_range(acting.layers, count)
            self._bound[acting] = policy, layers
        return self._bound[acting]

    def _width(self, policy: Policy | None) -> int:
        """Slots of a token after the policy, found by running it."""
        layer, device = self._layers[0], self._runner.device
        if policy is None:
            return layer.top_k
        logits = torch.randn(4, layer.num_experts, generator=torch.Generator().manual_seed(0)).to(device)
        weights, experts = logits.softmax(-1).topk(layer.top_k, -1)
        given = Routing(logits=logits, experts=experts, weights=weights)
        trial = Buffers(4, 1, 1, len(self._layers), layer.num_experts, device)
        part = Part(acting=VANILLA, live_T=torch.ones_like(trial.padding(4)), shared={})
        made = [policy(given, trial.step(part, each.layer, 4), each.rule) for each in self._layers]
        width = max(routing.experts.shape[1] for routing in made)
        if width > layer.top_k and device.type != "cpu":
            raise ValueError(
                f"{WHERE}: {policy.label}: gives a token up to {width} experts; vLLM's kernels are sized for "
                f"{layer.top_k} on this device"
            )
        return width

    # From step to step.

    def _begin(self, scheduler_output: SchedulerOutput) -> None:
        new = [
            (request.req_id, len(request.prompt_token_ids or ()), request.sampling_params)
            for request in scheduler_output.scheduled_new_reqs
        ]
        self._seats.update(new, scheduler_output.finished_req_ids)
        self._rows, self._routed = None, 0

    def _announce(self, names: Sequence[str], computed: Sequence[int], scheduled: Sequence[int]) -> None:
        self._warms_up = all(name.startswith(_WARM_UP) for name in names)
        rows = self._rows = self._seats.step(names, computed, scheduled)
        self._buffers.fill(rows, self._acts(rows))

    def _acts(self, rows: StepRows) -> list[Acting]:
        """Those who decide in this step; in an engine of one policy always that one, so that graphs hold it."""
        if self._settings.acting is not None:
            return [self._settings.acting]
        return [acting for acting in dict.fromkeys(lane.acting for lane in rows.lanes) if acting.policy is not None]

    def _end(self, scheduler_output: SchedulerOutput) -> None:
        if not scheduler_output.total_num_scheduled_tokens:
            return
        rows, self._rows = self._rows, None
        if rows is None:
            raise RuntimeError("lynx_exp: a step ran whose rows nobody announced; its routing was vanilla's")
        replayed = self._runner.device.type != "cpu" and not self._vllm_config.model_config.enforce_eager
        if not replayed and self._routed != len(self._layers):
            raise RuntimeError(
                f"lynx_exp: {self._routed} of {len(self._layers)} layers asked what to run; the others ran vanilla"
            )
        if not self._warms_up:
            self.record.add(rows, self._buffers.counts_4LG)

    def route(
        self, number: int, width: int, logits: Tensor, weights: Tensor, experts: Tensor, padded: int | None
    ) -> tuple[Tensor, Tensor]:
        """What the layer runs instead of what its router chose. `padded`: rows of the step, with padding."""
        size, buffers, layer = len(logits), self._buffers, self._layers[number]
        if padded is not None and size != padded and not self._dummy:
            raise RuntimeError(
                f"lynx_exp: {layer.name}: {size} rows are routed, the step has {padded}: ranks share or split them"
            )
        if size > buffers.max_rows or size < buffers.rows:
            raise RuntimeError(f"lynx_exp: {layer.name}: {size} rows are routed, {buffers.rows} were announced")
        self._routed += 1
        chosen = experts.long()

        def decide(routing: Routing) -> Routing | None:
            made = routing
            for part in buffers.parts:
                policy, layers = self._bind(part.acting)
                if policy is not None and number in layers:
                    made = policy(made, buffers.step(part, number, size), layer.rule)
            return None if made is routing else made

        new_weights, new = intercepted(decide, layer.rule, layer.ordered, logits, weights, chosen) or (weights, chosen)
        if self._settings.count:
            buffers.count(number, chosen, new)
        if size > buffers.rows:  # always so where a graph is captured: then nobody's rows run
            padding_T1 = buffers.padding(size)[:, None]
            new = torch.where(padding_T1, new[:1], new)
            new_weights = new_weights.masked_fill(padding_T1, 0)
        missing = width - new.shape[1]
        if missing > 0:
            new = torch.cat([new, new[:, :1].expand(-1, missing)], 1)
            new_weights = pad(new_weights, (0, missing))
        return new_weights.to(weights.dtype), experts if new is chosen else new.to(experts.dtype)
