"""One cell: what is run, and where its record goes."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lynx_exp.config.allowed import check_fields, choice, integer
from lynx_exp.config.choices import (
    BACKENDS,
    BATCHINGS,
    CHOICES,
    DTYPES,
    FIRST,
    KERNELS,
    LARGEST_SEED,
    LONGEST_NAME,
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
from lynx_exp.config.hardware import HardwareConfig
from lynx_exp.config.nodes import (
    MeasureConfig,
    ModelConfig,
    PackConfig,
    TaskConfig,
    TrackerConfig,
    VllmConfig,
)
from lynx_exp.config.policy_declarations import NOISE_FLOOR, UNTOUCHED
from lynx_exp.config.policy_labels import label_policy
from lynx_exp.config.roles import MISSING, Role, departures, node, plain
from lynx_exp.config.strict import refuse_unknown

if TYPE_CHECKING:
    from omegaconf import DictConfig

OF_POLICIES = ("policy.name", UNTOUCHED)
"""Where no policy acts."""
STATIC = ("batching", ("static",))
"""Where slots are not refilled."""


@dataclass(kw_only=True)
class Config:
    """One cell, and where its record goes. The first sentence of a field's docstring is its meaning in `--help`."""

    model: ModelConfig = node(pack=True, setting=1)
    """Which weights, and how their experts are computed."""
    policy: Any = plain(MISSING, role=Role.QUESTION, paired=False)
    """Name of the policy, and the policy's own parameters."""
    task: TaskConfig = node(pack=True)
    """What is asked, and how."""
    phases: str = choice(
        "decode", PHASES, role=Role.QUESTION, paired=False, point=True, unless=OF_POLICIES, idle="none"
    )
    """In which phases the policy acts."""
    layers: Any = plain(role=Role.QUESTION, paired=False, point=True, unless=OF_POLICIES)
    """In which layers the policy acts: numbers and ranges such as 1: or 0,4:8; null is all."""
    batch_size: int = integer(16, 1, MOST_ROWS, role=Role.QUESTION, point=True, in_cell_json=True)
    """Rows of one lane in decode: the requests that share a batch."""
    batching: str = choice("auto", BATCHINGS, role=Role.QUESTION, pack=True, setting=5, in_cell_json=True)
    """Whether a lane's slots are refilled from its queue, or its batch drains. continuous: a lane of batch_size slots,
    refilled as a server does; static: of batch_size prompts, which drains. auto: continuous, but for models whose rows
    cannot enter at any time. A cell's is one of the two."""
    waves: int = integer(4, 1, MOST_ROWS, role=Role.QUESTION, pack=True, setting=7, in_cell_json=True, unless=STATIC)
    """Continuous batching: requests of a lane's queue, in batch sizes, at most. More make fewer and longer lanes, with
    fewer fillers."""
    tail: str = choice("filler", TAILS, role=Role.QUESTION, pack=True, setting=6, in_cell_json=True, unless=STATIC)
    """Continuous batching: what keeps a lane's slots once its queue is empty. filler keeps them full with requests
    that are not scored (other documents of the task) until its last one has ended; drain leaves them empty."""
    choices: str = choice("spread", CHOICES, role=Role.QUESTION, pack=True, setting=8, in_cell_json=True)
    """Where the choices of one document go: spread over lanes, or together in one. Spread is as far apart as there is
    room."""
    limit: int | None = integer(None, 1, role=Role.QUESTION, pack=True, setting=10, in_cell_json=True)
    """First N documents of every subtask; null takes all."""
    seed: int = integer(0, 0, LARGEST_SEED, role=Role.QUESTION, pack=True, point=True, in_cell_json=True)
    """Seed of sampling, and of the batch plan where plan_seed is null."""
    plan_seed: int | None = integer(None, 0, LARGEST_SEED, role=Role.QUESTION, pack=True, point=True)
    """Seed of the batch plan: who shares a batch with whom; null takes seed."""
    plan_seeds: int = integer(1, 1, MOST_PLAN_SEEDS, role=Role.COSMETIC)
    """Multirun (-m, or a study): every cell under plan_seed 0 to N-1, which tables pool."""
    backend: str = choice("transformers", BACKENDS, role=Role.MEANS, pack=True, setting=2, in_cell_json=True)
    """What runs the model."""
    dtype: str = choice("auto", DTYPES, role=Role.MEANS, pack=True, setting=3)
    """Number format of the weights; auto is float32 on a CPU, bfloat16 elsewhere."""
    device: str = plain("auto", role=Role.MEANS, pack=True, setting=4)
    """Where the model runs: auto, cpu, mps, cuda or cuda:N."""
    kernel: str = choice("auto", KERNELS, role=Role.MEANS, pack=True, transformers_only="")
    """What selects experts; auto is Triton on CUDA, where installed."""
    steps: str = choice(
        "auto",
        STEPS,
        role=Role.MEANS,
        pack=True,
        unless=("device", ("cpu",)),
        transformers_only="; vllm.enforce_eager says it there",
    )
    """How decode steps run on a GPU: replayed as CUDA graphs, or launched from Python. captured: recorded once and
    replayed, with compiled layers, or an error; eager: launched; auto: launched where recording fails, and the record
    says why."""
    threads: int | None = integer(
        None, 1, MOST_THREADS, role=Role.MEANS, pack=True, transformers_only="; set OMP_NUM_THREADS"
    )
    """CPU threads of the model; null takes as many as cores are free."""
    fidelity: bool = plain(False, role=Role.RECORD, paired=False, unless=OF_POLICIES, idle=False, transformers_only="")
    """Compare next-token distributions with vanilla's on vanilla's responses (KL divergence, agreement)."""
    tokens: bool = plain(False, role=Role.RECORD, paired=False, transformers_only="")
    """Write what became of every decoded token of vanilla's responses. That is: confidence of the routers, experts that
    ran, KL divergence after it."""
    scoring: str = choice(
        "decode", SCORINGS, role=Role.QUESTION, pack=True, setting=9, in_cell_json=True, transformers_only=""
    )
    """How choices are scored: as if decoded in the cell's lanes, or in one prefill pass as lm-eval does."""
    truncate: str = choice("error", TRUNCATES, role=Role.QUESTION, pack=True)
    """Prompts that exceed the model's context: error refuses them, left cuts their beginning."""
    sandbox: str = choice("auto", SANDBOXES, role=Role.COSMETIC)
    """Where generated code runs; auto is the strongest that passes its self-test on this machine. unsafe is a plain
    process."""
    confirm_unsafe_code: bool = plain(False, role=Role.COSMETIC)
    """Needed for sandbox=unsafe, which runs what the model wrote with your rights."""
    plan: bool = plain(False, role=Role.COSMETIC)
    """Say what would be run, what it takes and what is missing for it, and run nothing."""
    max_failures: int | None = integer(3, 1, optional=True, role=Role.COSMETIC)
    """A cell that has failed so often in a row, none of its lanes further, is left alone; null tries for ever."""
    ignore_oom: bool = plain(False, role=Role.COSMETIC)
    """Run a cell although a smaller batch of the same has run out of memory."""
    pack: PackConfig = node(PackConfig, pack=True)
    """How many lanes are decoded side by side."""
    measure: MeasureConfig = node(MeasureConfig)
    """What is timed."""
    vllm: VllmConfig = node(VllmConfig, pack=True)
    """How vLLM's engine is made."""
    hardware: HardwareConfig = node(HardwareConfig)
    """What plan=true goes by for time and memory."""
    tracker: TrackerConfig = node()
    """Where finished cells are shown besides their folder."""
    results: str = plain("results", role=Role.COSMETIC)
    """Folder that all results are below."""
    study_name: str = plain("default", role=Role.COSMETIC)
    """Folder of this study below `results`, a plain name."""
    first: list[str] = plain(role=Role.COSMETIC, factory=list)
    """What to do before cells are checked, as a list: calibrate, to measure what policies lack. It is what
    `lynx-prepare calibrate` measures on the mini tasks' text, and is done where no file has it yet."""
    then: list[str] = plain(role=Role.COSMETIC, factory=list)
    """What to do when all cells have run, as a list: table, figures."""

    def __post_init__(self) -> None:
        self.layers = _layers(self.layers)
        check_fields(self)
        if self.sandbox == "unsafe" and not self.confirm_unsafe_code:
            raise ValueError(
                "sandbox=unsafe: runs what the model wrote with your rights: files, network, processes; "
                "give confirm_unsafe_code=true as well if that is what you want"
            )
        if self.hardware.is_named and not self.plan:
            raise ValueError(
                f"hardware={self.hardware.name}: only plan=true goes by it; a run takes what device={self.device} is"
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
        if len(self.study_name) > LONGEST_NAME:
            raise ValueError(
                f"study_name={self.study_name[:20]}...: {len(self.study_name)} letters; at most {LONGEST_NAME}"
            )
        if not self.results.strip():
            raise ValueError("results=: must be a folder, such as results=results")
        for name in self.first:
            one_of("first", name, FIRST)
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
        for name, value, use in departures(self):
            if use.transformers_only is not None:
                raise ValueError(f"{name}={str(value).lower()}: {only}{use.transformers_only}")
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
        return self.policy_name in UNTOUCHED

    @property
    def order_seed(self) -> int:
        """Of the batch plan. Rows that decode alone have no company that it could change: one plan for all seeds."""
        seed = self.seed if self.plan_seed is None or self.batch_size == 1 else self.plan_seed
        return seed + (NOISE_FLOOR_SEED if self.policy_name == NOISE_FLOOR else 0)

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
        """As tables and figures show it: `lynx(alpha=3, beta=2)`, without what is `hidden` at its default; with
        `match_active` in place of the knob that it turns; layers where they are not all."""
        return label_policy(self.policy_name, self.policy_params, self.layers, self.match_active)


def _layers(value: object) -> str | None:
    """One form of what names layers: `0,4:8`. ValueError for what is neither text, numbers nor a list of them."""
    if value is None or value == "":
        return None if value is None else ""
    parts = value if isinstance(value, list | tuple) else [value]
    if not parts or any(isinstance(part, bool) or not isinstance(part, int | str) for part in parts):
        raise ValueError(f"layers={value}: must be numbers and ranges such as 1: or 0,4:8, or [0,4:8], or null for all")
    return _joined([text.strip() for part in parts for text in str(part).split(",")])


def _joined(parts: list[str]) -> str:
    """The parts in order, those that touch as one: `1,0` and `0,1` are `0:2`. As they are where any is no range."""
    if not all(re.fullmatch(r"\d+|\d*:\d*", part) for part in parts):
        return ",".join(parts)
    merged: list[tuple[int, float, str]] = []
    for first, end, text in sorted(map(_range, parts)):
        if merged and first <= merged[-1][1]:
            start, last, _ = merged.pop()
            to = max(last, end)
            text = f"{start}:{'' if to == math.inf else int(to)}"
            first, end = start, to
        merged.append((first, end, text))
    return ",".join(text for _, _, text in merged)


def _range(part: str) -> tuple[int, float, str]:
    """(first, one beyond the last, as it was given)"""
    first, colon, end = part.partition(":")
    start = int(first or 0)
    return start, (int(end) if end else math.inf) if colon else start + 1, part


def to_config(composed: DictConfig) -> Config:
    """The checked config of one cell from what Hydra composed.

    Raises ValueError (a check, an unknown field), or one of OmegaConf's errors (a missing or mistyped value).
    """
    from omegaconf import OmegaConf

    refuse_unknown(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    finite("", asdict(config))
    return config
