"""Everything a user types to `lynx-exp`, typed and checked. Imports neither torch nor anything slow.

Hydra composes YAML into the schema below; `to_config` turns the result into plain objects, whose checks name the field,
its value and what is allowed. The policy node is open: each policy has its own parameters, checked in
`lynx_exp.routing`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

PHASES = ("decode", "prefill", "both", "none")
BATCHINGS = ("static", "continuous")
SCORINGS = ("decode", "prefill")
TRUNCATES = ("error", "left")
NOISE_FLOOR_SEED = 1_000_003
"""What policy=noise_floor adds to the seed of the batch plan: nobody counts his seeds so far."""
MIXINGS = ("shuffled", "separate")
SANDBOXES = ("auto", "bubblewrap", "namespaces", "landlock", "unsafe")
BACKENDS = ("transformers", "vllm")
DTYPES = ("auto", "float32", "bfloat16", "float16")
EXPERTS_IMPLEMENTATIONS = ("auto", "per_expert", "per_expert_exact", "eager", "batched_mm", "grouped_mm")
KERNELS = ("auto", "torch", "triton")
PARALLEL = ("tp", "ep")
MODEL_KINDS = ("bundled", "hub", "random")
TRACKERS = ("none", "wandb")
WANDB_MODES = ("offline", "online", "disabled")
THEN = ("table", "figures")


UNSHOWN = (
    *("min_batch", "seed", "calibration", "bins", "score", "warm_up", "warm_up_for", "utility", "power", "guarantee"),
    *("metric", "first_rank", "weights", "oea.p"),
)
"""Policy parameters that a label leaves out where they have the value in conf/policy; one without a value (null) is
always left out."""


def did_you_mean(value: object, known: Collection[str]) -> str:
    """`; did you mean X?` if a known name is close to `value`, else nothing."""
    close = get_close_matches(str(value), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(name: str, value: object, allowed: Collection[str], hint: str = "") -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value}: must be one of {', '.join(allowed)}{hint}{did_you_mean(value, allowed)}")


def at_least(name: str, value: int | None, low: int, *, optional: bool = False) -> None:
    """Raise ValueError unless `value` >= `low` (or is None, where that is allowed)."""
    if value is None and optional:
        return
    if value is None or value < low:
        shown = "null" if value is None else value
        raise ValueError(f"{name}={shown}: must be at least {low}{', or null for no bound' if optional else ''}")


def _check_device_map(value: object) -> None:
    if isinstance(value, dict):
        fits = bool(value) and all(isinstance(k, str) and isinstance(v, int | str) for k, v in value.items())
    else:
        fits = value is None or (isinstance(value, str) and value != "")
    if not fits:
        raise ValueError(f"model.device_map={value}: must be null, auto, a device, or a map from modules to devices")


@dataclass(kw_only=True)
class ModelConfig:
    """Which weights, and how their experts are computed."""

    kind: str = MISSING
    """bundled (in the package), hub (a path or a hub id) or random (an architecture with random weights)."""
    id: str = MISSING
    """bundled: its name; hub: a folder or a hub id; random: the architecture (a transformers model_type)."""
    revision: str | None = None
    """Of the hub: branch, tag or commit."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the weights."""
    experts_implementation: str = "auto"
    """How transformers multiplies by the experts; auto takes the fastest one for the device."""
    device_map: Any = None
    """Layers over the GPUs of one process, as transformers takes it: auto, a device, or {module: device}; null: all on
    `device`."""
    parallel: str | None = None
    """Over the ranks of torchrun: tp (every layer in slices), ep (whole experts); null: one process."""
    config: dict[str, Any] = field(default_factory=dict)
    """random: fields of the architecture's configuration."""
    seed: int = 0
    """random: of the weights."""

    def __post_init__(self) -> None:
        one_of("model.kind", self.kind, MODEL_KINDS)
        one_of("model.experts_implementation", self.experts_implementation, EXPERTS_IMPLEMENTATIONS)
        if self.id == MISSING:
            raise ValueError("model.id is missing: give a folder or a hub id, as in model=hub model.id=PATH_OR_HUB_ID")
        if self.parallel is not None:
            one_of("model.parallel", self.parallel, PARALLEL)
        _check_device_map(self.device_map)
        if self.device_map is not None and self.parallel is not None:
            raise ValueError(f"model.parallel={self.parallel}: not with model.device_map; one process or many ranks")
        if self.kind == "random" and (self.parallel or self.device_map) is not None:
            field = "parallel" if self.parallel else "device_map"
            raise ValueError(
                f"model.{field}={getattr(self, field)}: random weights are made, not loaded, on one device; for more "
                "save them with save_pretrained and give model=hub model.id=FOLDER"
            )
        if self.config and self.kind != "random":
            raise ValueError(f"model.config={self.config}: only model=random takes one, not model.kind={self.kind}")


@dataclass(kw_only=True)
class GenerationConfig:
    """What to change of how a task generates; null is as its definition says."""

    temperature: float | None = None
    """0 decodes greedily; above, each request draws from its own seed, whoever shares its lane."""
    top_p: float | None = None
    top_k: int | None = None
    max_gen_toks: int | None = None
    until: list[str] | None = None
    """Strings that end a response."""

    def __post_init__(self) -> None:
        at_least("task.generation.max_gen_toks", self.max_gen_toks, 1, optional=True)
        at_least("task.generation.top_k", self.top_k, 1, optional=True)
        if self.temperature is not None and not self.temperature >= 0:
            raise ValueError(f"task.generation.temperature={self.temperature:g}: must be 0 (greedy) or above, or null")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"task.generation.top_p={self.top_p:g}: must be above 0 and at most 1, or null")


@dataclass(kw_only=True)
class TaskConfig:
    """One or more lm-eval tasks reported together, and how they are asked (names as in lm-eval's command line)."""

    name: str = MISSING
    subtasks: list[str] = MISSING
    """lm-eval task names, or YAML files that define one."""
    data: str = "hub"
    """hub; or a file (JSON, JSON Lines, their .gz, parquet) or folder of files with the same fields: no network."""
    revision: str | None = None
    """Of the hub's data set: branch, tag or commit."""
    num_fewshot: int | None = None
    """Examples before each question; null is as the task is defined."""
    fewshot_seed: int = 1234
    """Of the choice of examples, where a task draws them."""
    apply_chat_template: bool = False
    """Ask in turns, by the chat template of the model's tokenizer."""
    fewshot_as_multiturn: bool = True
    """With a chat template: each example is a turn of its own."""
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    """What else the template takes, such as enable_thinking."""
    system_instruction: str | None = None
    repeats: int | None = None
    """Responses to each document, with sampling; null is as the task is defined."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    weights: list[float] | None = None
    """One a subtask: all of them become one stream of requests in these shares, whose lanes they fill together."""
    mixing: str = "shuffled"
    """Of such a stream: shuffled (lanes hold requests of all subtasks), separate (of one each: the control)."""

    def __post_init__(self) -> None:
        if not self.subtasks:
            raise ValueError(f"task.subtasks=[]: task {self.name} needs at least one")
        if len(set(self.subtasks)) < len(self.subtasks):
            raise ValueError(f"task.subtasks={self.subtasks}: names one twice")
        at_least("task.num_fewshot", self.num_fewshot, 0, optional=True)
        at_least("task.repeats", self.repeats, 1, optional=True)
        one_of("task.mixing", self.mixing, MIXINGS)
        if self.weights is not None and (
            len(self.weights) != len(self.subtasks) or not all(weight > 0 for weight in self.weights)
        ):
            raise ValueError(
                f"task.weights={self.weights}: must give a number above 0 for each of task.subtasks={self.subtasks}"
            )


@dataclass(kw_only=True)
class MeasureConfig:
    """Timed decode steps of one batch of the task's prompts, the policy's interleaved with vanilla's."""

    latency: bool = False
    new_tokens: int = 16
    """Decode steps of one repeat; EOS is ignored."""
    repeats: int = 9
    """At least, after a warm-up of 2 to 10 rounds. Intervals need 2; with few they cover less than 95 % (7: 87 %,
    9: 96 %)."""
    max_repeats: int = 25
    """At most, where `precision` is not reached before; a vanilla cell never needs more than `repeats`."""
    precision: float = 0.02
    """What the repeats go on for: half the width of the speed-up's 95 % interval, relative to its median. A policy's
    own code costs a few percent; coarser than this could not show it."""
    context: int | None = None
    """Tokens of each prompt that is timed: the task's, repeated or cut; null: the task's as they are."""
    prefill: bool = False
    """Time the lane's prefill, too."""
    breakdown: bool = False
    """Time the sections of a decode step, too: attention, router, policy, experts, rest."""

    def __post_init__(self) -> None:
        for name in ("new_tokens", "repeats"):
            at_least(f"measure.{name}", getattr(self, name), 1)
        if self.max_repeats < self.repeats:
            raise ValueError(f"measure.max_repeats={self.max_repeats}: must be at least measure.repeats={self.repeats}")
        if not 0 < self.precision < 1:
            raise ValueError(f"measure.precision={self.precision:g}: must be above 0 and below 1")
        at_least("measure.context", self.context, 1, optional=True)
        for name in ("prefill", "breakdown"):
            if getattr(self, name) and not self.latency:
                raise ValueError(f"measure.{name}=true: needs measure.latency=true")


@dataclass(kw_only=True)
class PackConfig:
    """How many lanes, of how many cells, are decoded side by side. Changes speed, not results."""

    max_rows: int = 256
    """Rows of one physical batch, unless a lane is wider. On a CPU more than 256 gain nothing."""
    memory_gib: float | None = None
    """For keys, values and prefilled prompts; null: half of a CPU's available memory, 80 % of what a GPU has free."""
    max_cells: int = 48
    """Cells of one pack: all of them are finished at about the same time."""

    def __post_init__(self) -> None:
        at_least("pack.max_rows", self.max_rows, 1)
        at_least("pack.max_cells", self.max_cells, 1)
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise ValueError(f"pack.memory_gib={self.memory_gib:g}: must be above 0, or null")


@dataclass(kw_only=True)
class VllmConfig:
    """backend=vllm: how its engine is made."""

    prefix_caching: bool = False
    """Keep keys and values of prompts for requests with the same beginning. Off, each lane computes its own."""
    max_num_batched_tokens: int = 16384
    """Of one step. The prompts of a lane must fit, so that its requests decode in step."""
    enforce_eager: bool = True
    """False compiles the model (torch.compile), on a CPU; where there are CUDA graphs, lanes need True."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Whatever else `vllm.LLM` takes, such as tensor_parallel_size or moe_backend."""

    def __post_init__(self) -> None:
        at_least("vllm.max_num_batched_tokens", self.max_num_batched_tokens, 1)
        for name in OURS_IN_VLLM:
            if name in self.engine_args:
                raise ValueError(f"vllm.engine_args.{name}: is set from other fields (model, dtype, pack, vllm)")


OURS_IN_VLLM = (
    *("model", "revision", "trust_remote_code", "dtype", "max_num_seqs", "kv_cache_memory_bytes", "logits_processors"),
    *("max_num_batched_tokens", "enable_prefix_caching", "enforce_eager", "additional_config", "async_scheduling"),
)
"""Arguments of `vllm.LLM` that follow from fields of their own."""


@dataclass(kw_only=True)
class TrackerConfig:
    """Where finished cells are shown besides their folder."""

    name: str = "none"
    project: str = "lynx_exp"
    entity: str | None = None
    mode: str = "offline"
    tags: list[str] = field(default_factory=list)
    wait_s: float = 1.0
    """Online: how long the end of a run waits without a sign of life until uploads go on by themselves. A job whose
    machine goes away when it ends wants more; `lynx-results sync` makes up for what is lost."""

    def __post_init__(self) -> None:
        if not self.wait_s >= 0:
            raise ValueError(f"tracker.wait_s={self.wait_s:g}: must be at least 0 (seconds)")
        one_of("tracker.name", self.name, TRACKERS)
        one_of("tracker.mode", self.mode, WANDB_MODES)


@dataclass(kw_only=True)
class Config:
    """One cell, and where its record goes."""

    model: ModelConfig = MISSING
    policy: Any = MISSING
    """name, and the policy's own parameters."""
    task: TaskConfig = MISSING
    phases: str = "decode"
    """In which phases the policy acts: decode, prefill, both, none."""
    layers: str | None = None
    """In which layers it acts: numbers and ranges such as 1: or 0,4:8; null is all."""
    batch_size: int = 16
    """Rows of one lane in decode: the requests that share a batch."""
    batching: str = "static"
    """static: a lane of batch_size prompts that drains; continuous: of batch_size slots, refilled from its queue."""
    waves: int = 4
    """Continuous batching: requests of a lane's queue, in batch sizes. One wave is static batching."""
    limit: int | None = None
    """First N documents of every subtask; null takes all."""
    seed: int = 0
    """Of the batch plan: who shares a batch with whom."""
    backend: str = "transformers"
    dtype: str = "auto"
    device: str = "auto"
    kernel: str = "auto"
    """What selects experts: auto (Triton on CUDA, where installed), torch or triton."""
    threads: int | None = None
    """CPU threads of the model; null leaves the default."""
    fidelity: bool = False
    """Compare next-token distributions with vanilla's on vanilla's responses (KL divergence, agreement)."""
    tokens: bool = False
    """Write what became of every decoded token of vanilla's responses: confidence of the routers, experts that ran, KL
    divergence after it."""
    scoring: str = "decode"
    """Choices: decode, as if their tokens were decoded in the cell's lanes; prefill, in one pass as lm-eval does."""
    truncate: str = "error"
    """Prompts that exceed the model's context: error refuses them, left cuts their beginning."""
    sandbox: str = "auto"
    """Where generated code runs: auto takes the strongest of bubblewrap, namespaces and landlock that passes its
    self-test on this machine; unsafe is a plain process."""
    confirm_unsafe_code: bool = False
    """Needed for sandbox=unsafe."""
    plan: bool = False
    """Say what would be run, what it takes and what is missing for it, and run nothing."""
    max_failures: int | None = 3
    """A cell that has failed so often in a row, none of its lanes further, is left alone; null tries for ever."""
    ignore_oom: bool = False
    """Run a cell although a smaller batch of the same has run out of memory."""
    pack: PackConfig = field(default_factory=PackConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    tracker: TrackerConfig = MISSING
    results: str = "results"
    """Root of the results."""
    study_name: str = "default"
    """Folder below `results`."""
    then: list[str] = field(default_factory=list)
    """What to do when all cells have run: table, figures."""

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        at_least("limit", self.limit, 1, optional=True)
        at_least("threads", self.threads, 1, optional=True)
        at_least("waves", self.waves, 1)
        at_least("max_failures", self.max_failures, 1, optional=True)
        one_of("phases", self.phases, PHASES)
        one_of("batching", self.batching, BATCHINGS)
        one_of("scoring", self.scoring, SCORINGS)
        one_of("truncate", self.truncate, TRUNCATES)
        one_of("sandbox", self.sandbox, SANDBOXES)
        if self.sandbox == "unsafe" and not self.confirm_unsafe_code:
            raise ValueError(
                "sandbox=unsafe: runs what the model wrote with your rights: files, network, processes; "
                "give confirm_unsafe_code=true as well if that is what you want"
            )
        one_of("backend", self.backend, BACKENDS)
        if self.backend == "vllm":
            self._check_vllm()
        one_of("dtype", self.dtype, DTYPES)
        one_of("kernel", self.kernel, KERNELS)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"device={self.device}: must be auto, cpu, mps, cuda or cuda:N")
        if self.model.device_map is not None and self.device != "auto":
            raise ValueError(f"device={self.device}: model.device_map says where the layers go; leave device=auto")
        if self.model.parallel is not None and ":" in self.device:
            raise ValueError(f"device={self.device}: model.parallel takes one device a rank; give auto, cpu or cuda")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.study_name):
            raise ValueError(f"study_name={self.study_name}: must be a plain folder name (letters, digits, . _ -)")
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
        return self.policy["name"]

    @property
    def match_active(self) -> float | None:
        """Active experts that the policy's knob is to be set for; below 1, as a share of vanilla's."""
        return None if self.is_untouched else self.policy.get("match_active")

    @property
    def is_untouched(self) -> bool:
        """Whether the model routes as it always does: vanilla, or vanilla again on another plan."""
        return self.policy_name in ("vanilla", "noise_floor")

    @property
    def plan_seed(self) -> int:
        """Of the batch plan."""
        return self.seed + (NOISE_FLOOR_SEED if self.policy_name == "noise_floor" else 0)

    @property
    def policy_params(self) -> dict[str, Any]:
        """As the policy is built with."""
        return {key: value for key, value in self.policy.items() if key not in ("name", "match_active")}

    @property
    def policy_label(self) -> str:
        """As tables and figures show it: `lynx(alpha=3, beta=2)`, without what stays at its default (`UNSHOWN`); with
        `match_active` in place of the knob that it turns; layers where they are not all."""
        return label_policy(self.policy_name, self.policy_params, self.layers, self.match_active)


def label_policy(
    name: str, parameters: Mapping[str, Any], layers: str | None = None, match_active: float | None = None
) -> str:
    """See `Config.policy_label`."""
    usual = _usual_parameters(name)
    turned = usual.get("knob") if match_active is not None else None
    shown = []
    for key, value in parameters.items():
        secondary = key in UNSHOWN or f"{name}.{key}" in UNSHOWN
        if value is not None and key != turned and not (secondary and usual.get(key) == value):
            stem = Path(value).stem if key == "calibration" and isinstance(value, str) else _short(value)
            shown.append(f"{key}={stem}")
    if match_active is not None:
        shown.append(f"match_active={_short(match_active)}")
    if layers is not None:
        shown.append(f"layers={layers}")
    return f"{name}({', '.join(shown)})" if shown else name


def default_parameters(policy: str) -> dict[str, Any] | None:
    """A policy's parameters as conf/policy has them; None for a policy that it does not have."""
    usual = {key: value for key, value in _usual_parameters(policy).items() if key not in ("match_active", "knob")}
    return {key: value for key, value in usual.items() if key != "name"} if usual else None


@cache
def _usual_parameters(policy: str) -> dict[str, Any]:
    """What conf/policy says of a policy; empty where it has no file. `knob`: the parameter that match_active sets."""
    file = config_folder() / "policy" / f"{policy}.yaml"
    if not file.is_file():
        return {}
    text = file.read_text()
    knob = re.search(r"^match_active: null\b.*#.*sets (\w+)", text, re.MULTILINE)
    values = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()} | ({"knob": knob[1]} if knob else {})


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_config(composed: DictConfig) -> Config:
    """The checked config of one cell from what Hydra composed.

    Raises ValueError (a check), or one of OmegaConf's errors (a missing or mistyped value).
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def config_folder(name: str = "conf") -> Path:
    """`conf` or `sweeps`: at the top of a checkout, inside the package of an installed wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout / name if (checkout / "pyproject.toml").exists() else package / name
