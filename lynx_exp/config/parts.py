"""The nodes of a cell's configuration: model, task and how it is asked, measuring, packs, vLLM, tracker."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lynx_exp.config.choices import (
    EXPERTS_IMPLEMENTATIONS,
    LARGEST_SEED,
    MIXINGS,
    MODEL_KINDS,
    MOST_ROWS,
    PARALLEL,
    TRACKERS,
    WANDB_MODES,
    at_least,
    one_of,
)


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
    allow_partial: bool = False
    """Run a checkpoint that lacks weights of its model (random ones take their place), or has weights too many; its
    cells are marked."""
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
        at_least("model.seed", self.seed, 0, most=LARGEST_SEED)
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
        if self.temperature is not None and not (self.temperature == 0 or 1e-3 <= self.temperature <= 1e3):
            raise ValueError(
                f"task.generation.temperature={self.temperature:g}: must be 0 (greedy) or above, from 0.001 to 1000, "
                "or null"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"task.generation.top_p={self.top_p:g}: must be above 0 and at most 1, or null")
        for text in self.until or ():
            _check_stop(text)


def _check_stop(text: str) -> None:
    """ValueError for a string that ends no response, or every one."""
    if not text:
        raise ValueError("task.generation.until=['']: an empty string would end every response at once; leave it out")
    if "\\n" in text:
        raise ValueError(
            f"task.generation.until=['{text}']: holds a backslash and an n, not a line break; in a shell type "
            '$\'task.generation.until=["\\n"]\', in YAML "\\n"'
        )


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
        at_least("task.repeats", self.repeats, 1, most=MOST_ROWS, optional=True)
        at_least("task.fewshot_seed", self.fewshot_seed, 0, most=LARGEST_SEED)
        one_of("task.mixing", self.mixing, MIXINGS)
        if self.weights is not None and (
            len(self.weights) != len(self.subtasks) or not all(0 < weight < math.inf for weight in self.weights)
        ):
            raise ValueError(
                f"task.weights={self.weights}: must give a number above 0 for each of task.subtasks={self.subtasks}"
            )


@dataclass(kw_only=True)
class MeasureConfig:
    """Timed decode steps of windows drawn from the cell's own run, the policy's interleaved with vanilla's."""

    latency: bool = False
    windows: int = 10
    """At least: places (lane, step) of the run, drawn by the cell's seed. Lanes differ by 2 to 3 % in what a policy
    gains; an interval over fewer places could not show it."""
    max_windows: int = 24
    """At most, where `precision` is not reached before; a vanilla cell never needs more than `windows`."""
    new_tokens: int = 4
    """Consecutive decode steps of a window. More of one place say less than another place."""
    repeats: int = 2
    """Times that a window is timed, after a turn that does not count (the first window: 2 to 10 rounds of warm-up)."""
    precision: float = 0.02
    """What the windows go on for: half the width of the speed-up's 95 % interval, relative to it. A policy's own code
    costs a few percent; coarser than this could not show it."""
    context: int | None = None
    """Tokens before each row of a window: its own, repeated or cut; null: its own as they are."""
    prefill: bool = False
    """Time the prefill of the first window's prompts, too."""
    breakdown: bool = False
    """Time the sections of a decode step, too: attention, router, policy, experts, rest."""

    def __post_init__(self) -> None:
        for name, least in (("windows", 2), ("new_tokens", 1), ("repeats", 1)):
            at_least(f"measure.{name}", getattr(self, name), least, most=MOST_ROWS)
        if self.max_windows < self.windows:
            raise ValueError(f"measure.max_windows={self.max_windows}: must be at least measure.windows={self.windows}")
        if not 0 < self.precision < 1:
            raise ValueError(f"measure.precision={self.precision:g}: must be above 0 and below 1")
        at_least("measure.max_windows", self.max_windows, 1, most=MOST_ROWS)
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
        at_least("pack.max_rows", self.max_rows, 1, most=MOST_ROWS)
        at_least("pack.max_cells", self.max_cells, 1)
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
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
        if not 0 <= self.wait_s < math.inf:
            raise ValueError(f"tracker.wait_s={self.wait_s:g}: must be at least 0 (seconds)")
        one_of("tracker.name", self.name, TRACKERS)
        one_of("tracker.mode", self.mode, WANDB_MODES)
