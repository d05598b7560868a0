"""One cell: what is run, and where its record goes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from lynx_exp.config.allowed import check_fields, choice, whole
from lynx_exp.config.choices import (
    BACKENDS,
    BATCHINGS,
    CHOICES,
    DTYPES,
    KERNELS,
    LARGEST_SEED,
    MOST_PLAN_SEEDS,
    MOST_ROWS,
    MOST_THREADS,
    NOISE_FLOOR_SEED,
    PHASES,
    SANDBOXES,
    SCORINGS,
    STEPS,
    TAILS,
    THEN,
    TRUNCATES,
    finite,
    one_of,
)
from lynx_exp.config.nodes import MeasureConfig, ModelConfig, PackConfig, TaskConfig, TrackerConfig, VllmConfig
from lynx_exp.config.policy_labels import label_policy
from lynx_exp.config.strict import refuse_unknown


@dataclass(kw_only=True)
class Config:
    """One cell, and where its record goes. The first sentence of a field's docstring is its meaning in `--help`."""

    model: ModelConfig = MISSING
    """Which weights, and how their experts are computed."""
    policy: Any = MISSING
    """Name of the policy, and the policy's own parameters."""
    task: TaskConfig = MISSING
    """What is asked, and how."""
    phases: str = choice("decode", PHASES)
    """In which phases the policy acts."""
    layers: Any = None
    """In which layers the policy acts: numbers and ranges such as 1: or 0,4:8; null is all."""
    batch_size: int = whole(16, 1, MOST_ROWS)
    """Rows of one lane in decode: the requests that share a batch."""
    batching: str = choice("auto", BATCHINGS)
    """Whether a lane's slots are refilled from its queue, or its batch drains. continuous: a lane of batch_size slots,
    refilled as a server does; static: of batch_size prompts, which drains. auto: continuous, but for models whose rows
    cannot enter at any time. A cell's is one of the two."""
    waves: int = whole(4, 1, MOST_ROWS)
    """Continuous batching: requests of a lane's queue, in batch sizes, at most. More make fewer and longer lanes, with
    fewer fillers."""
    tail: str = choice("filler", TAILS)
    """Continuous batching: what keeps a lane's slots once its queue is empty. filler keeps them full with requests
    that are not scored (other documents of the task) until its last one has ended; drain leaves them empty."""
    choices: str = choice("spread", CHOICES)
    """Where the choices of one document go: spread over lanes, or together in one. Spread is as far apart as there is
    room."""
    limit: int | None = whole(None, 1)
    """First N documents of every subtask; null takes all."""
    seed: int = whole(0, 0, LARGEST_SEED)
    """Seed of sampling, and of the batch plan where plan_seed is null."""
    plan_seed: int | None = whole(None, 0, LARGEST_SEED)
    """Seed of the batch plan: who shares a batch with whom; null takes seed."""
    plan_seeds: int = whole(1, 1, MOST_PLAN_SEEDS)
    """Multirun (-m, or a study): every cell under plan_seed 0 to N-1, which tables pool."""
    backend: str = choice("transformers", BACKENDS)
    """What runs the model."""
    dtype: str = choice("auto", DTYPES)
    """Number format of the weights; auto is float32 on a CPU, bfloat16 elsewhere."""
    device: str = "auto"
    """Where the model runs: auto, cpu, mps, cuda or cuda:N."""
    kernel: str = choice("auto", KERNELS)
    """What selects experts; auto is Triton on CUDA, where installed."""
    steps: str = choice("auto", STEPS)
    """How decode steps run on a GPU: replayed as CUDA graphs, or launched from Python. captured: recorded once and
    replayed, with compiled layers, or an error; eager: launched; auto: launched where recording fails, and the record
    says why."""
    threads: int | None = whole(None, 1, MOST_THREADS)
    """CPU threads of the model; null takes as many as cores are free."""
    fidelity: bool = False
    """Compare next-token distributions with vanilla's on vanilla's responses (KL divergence, agreement)."""
    tokens: bool = False
    """Write what became of every decoded token of vanilla's responses. That is: confidence of the routers, experts that
    ran, KL divergence after it."""
    scoring: str = choice("decode", SCORINGS)
    """How choices are scored: as if decoded in the cell's lanes, or in one prefill pass as lm-eval does."""
    truncate: str = choice("error", TRUNCATES)
    """Prompts that exceed the model's context: error refuses them, left cuts their beginning."""
    sandbox: str = choice("auto", SANDBOXES)
    """Where generated code runs; auto is the strongest that passes its self-test on this machine. unsafe is a plain
    process."""
    confirm_unsafe_code: bool = False
    """Needed for sandbox=unsafe, which runs what the model wrote with your rights."""
    plan: bool = False
    """Say what would be run, what it takes and what is missing for it, and run nothing."""
    max_failures: int | None = whole(3, 1, optional=True)
    """A cell that has failed so often in a row, none of its lanes further, is left alone; null tries for ever."""
    ignore_oom: bool = False
    """Run a cell although a smaller batch of the same has run out of memory."""
    pack: PackConfig = field(default_factory=PackConfig)
    """How many lanes are decoded side by side."""
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """What is timed."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """How vLLM's engine is made."""
    tracker: TrackerConfig = MISSING
    """Where finished cells are shown besides their folder."""
    results: str = "results"
    """Folder that all results are below."""
    study_name: str = "default"
    """Folder of this study below `results`, a plain name."""
    then: list[str] = field(default_factory=list)
    """What to do when all cells have run, as a list: table, figures."""

    def __post_init__(self) -> None:
        self.layers = _layers(self.layers)
        check_fields(self)
        if self.sandbox == "unsafe" and not self.confirm_unsafe_code:
            raise ValueError(
                "sandbox=unsafe: runs what the model wrote with your rights: files, network, processes; "
                "give confirm_unsafe_code=true as well if that is what you want"
            )
        if self.backend == "vllm":
            self._check_vllm()
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"device={self.device}: must be auto, cpu, mps, cuda or cuda:N (N: the number of a GPU)")
        if self.model.device_map is not None and self.device != "auto":
            raise ValueError(f"device={self.device}: model.device_map says where the layers go; leave device=auto")
        if self.model.parallel is not None and ":" in self.device:
            raise ValueError(f"device={self.device}: model.parallel takes one device a rank; give auto, cpu or cuda")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.study_name):
            raise ValueError(f"study_name={self.study_name}: must be a plain folder name (letters, digits, . _ -)")
        if not self.results.strip():
            raise ValueError("results=: must be a folder, such as results=results")
        for name in self.then:
            one_of("then", name, THEN)
        if not isinstance(self.policy, dict) or not isinstance(self.policy.get("name"), str):
            raise ValueError(
                f"policy={self.policy}: must be one of the files in conf/policy, which give a name and parameters"
            )
        target = self.match_active
        if target is not None and (isinstance(target, bool) or not isinstance(target, int | float) or target <= 0):
            raise ValueError(
                f"policy.match_active={target}: must be a number of experts, a share of vanilla's (below 1), or null"
            )

    def _check_vllm(self) -> None:
        """ValueError for what only the transformers backend does."""
        only = "only with backend=transformers"
        for field_name, value, default, hint in (
            ("fidelity", self.fidelity, False, ""),
            ("tokens", self.tokens, False, ""),
            ("measure.context", self.measure.context, None, ""),
            ("measure.prefill", self.measure.prefill, False, ""),
            ("measure.breakdown", self.measure.breakdown, False, ""),
            ("scoring", self.scoring, "decode", ""),
            ("kernel", self.kernel, "auto", ""),
            ("steps", self.steps, "auto", "; vllm.enforce_eager says it there"),
            ("threads", self.threads, None, "; set OMP_NUM_THREADS"),
            ("model.device_map", self.model.device_map, None, "; give vllm.engine_args.tensor_parallel_size"),
            ("model.parallel", self.model.parallel, None, "; give vllm.engine_args.tensor_parallel_size"),
            ("model.experts_implementation", self.model.experts_implementation, "auto", "; vLLM has its own"),
        ):
            if value != default:
                raise ValueError(f"{field_name}={str(value).lower()}: {only}{hint}")
        if self.model.kind == "random":
            raise ValueError(
                f"model.kind=random: {only}; save it with save_pretrained and give model=hub model.id=FOLDER"
            )

    @property
    def policy_name(self) -> str:
        return str(self.policy["name"])

    @property
    def match_active(self) -> float | None:
        """Active experts that the policy's knob is to be set for; below 1, as a share of vanilla's."""
        return None if self.is_untouched else self.policy.get("match_active")

    @property
    def is_untouched(self) -> bool:
        """Whether the model routes as it always does: vanilla, or vanilla again on another plan."""
        return self.policy_name in ("vanilla", "noise_floor")

    @property
    def order_seed(self) -> int:
        """Of the batch plan. Rows that decode alone have no company that it could change: one plan for all seeds."""
        seed = self.seed if self.plan_seed is None or self.batch_size == 1 else self.plan_seed
        return seed + (NOISE_FLOOR_SEED if self.policy_name == "noise_floor" else 0)

    @property
    def is_filled(self) -> bool:
        """Whether fillers keep its lanes full."""
        return self.batching != "static" and self.tail == "filler"

    @property
    def policy_params(self) -> dict[str, Any]:
        """As the policy is built with."""
        return {key: value for key, value in self.policy.items() if key not in ("name", "match_active")}

    @property
    def policy_label(self) -> str:
        """As tables and figures show it: `lynx(alpha=3, beta=2)`, without what stays at its default (`UNSHOWN`); with
        `match_active` in place of the knob that it turns; layers where they are not all."""
        return label_policy(self.policy_name, self.policy_params, self.layers, self.match_active)


def _layers(value: object) -> str | None:
    """One form of what names layers: `0,4:8`. ValueError for what is neither text, numbers nor a list of them."""
    if value is None or value == "":
        return None if value is None else ""
    parts = value if isinstance(value, list | tuple) else [value]
    if not parts or any(isinstance(part, bool) or not isinstance(part, int | str) for part in parts):
        raise ValueError(f"layers={value}: must be numbers and ranges such as 1: or 0,4:8, or [0,4:8], or null for all")
    return ",".join(str(part) for part in parts)


def to_config(composed: DictConfig) -> Config:
    """The checked config of one cell from what Hydra composed.

    Raises ValueError (a check, an unknown field), or one of OmegaConf's errors (a missing or mistyped value).
    """
    refuse_unknown(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    finite("", asdict(config))
    return config
