"""The nested parts of a cell's configuration: model, task, measurement, packs, vLLM and tracker.

`lynx_exp.config.Config` holds one of each. Hydra composes them from `conf/` and the command line before any model
loads, so that a bad value is refused at once. A field's docstring is its text in `lynx-exp --help`, and its `role` says
whether it belongs to the identity of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lynx_exp.config.allowed import check_fields, choice, integer
from lynx_exp.config.checkpoint_node import CheckpointConfig
from lynx_exp.config.choices import (
    EXPERTS_IMPLEMENTATIONS,
    GENERATIONS,
    LARGEST_SEED,
    MIXINGS,
    MODEL_KINDS,
    MODEL_SIZES,
    MOST_ROWS,
    PARALLEL,
    TRACKERS,
    WANDB_MODES,
    at_least,
    one_of,
)
from lynx_exp.config.roles import MISSING, Role, node, plain

TENSOR_PARALLEL = "; give vllm.engine_args.tensor_parallel_size"
"""The advice in the message that refuses a field under backend=vllm."""
UNTIMED = ("measure.latency", (False, None))
"""A field with `unless=UNTIMED` has no effect in a cell that is not timed."""
NOT_VLLM = ("backend", ("transformers",))
"""A field with `unless=NOT_VLLM` has no effect with the transformers backend."""


def _check_device_map(value: object) -> None:
    if isinstance(value, dict):
        fits = bool(value) and all(isinstance(k, str) and isinstance(v, int | str) for k, v in value.items())
    else:
        fits = value is None or (isinstance(value, str) and value != "")
    if not fits:
        raise ValueError(f"model.device_map={value}: must be null, auto, a device, or a map from modules to devices")


def _check_sizes(sizes: dict[str, int]) -> None:
    for name in sizes:
        one_of("model.sizes", name, MODEL_SIZES)
    for name in MODEL_SIZES:
        if name not in sizes:
            raise ValueError(f"model.sizes: {name} is missing; give all of {', '.join(MODEL_SIZES)}, or none")
        at_least(f"model.sizes.{name}", sizes[name], 1)
    for name, whole_of in (("top_k", "experts"), ("kv_heads", "heads")):
        if sizes[name] > sizes[whole_of]:
            raise ValueError(f"model.sizes.{name}={sizes[name]}: must be at most {whole_of}={sizes[whole_of]}")
    for name, part in (("hidden", "heads"), ("heads", "kv_heads")):
        if sizes[name] % sizes[part]:
            raise ValueError(f"model.sizes.{name}={sizes[name]}: must be a multiple of {part}={sizes[part]}")


@dataclass(kw_only=True)
class ModelConfig:
    """Which model to run, and how to load it and compute its experts."""

    kind: str = choice(MISSING, MODEL_KINDS, role=Role.CONTENT)
    """Where the weights come from: the package, a folder or the hub, or a random generator."""
    id: str = plain(MISSING, role=Role.CONTENT, path=True)
    """The model: a name (kind=bundled), a folder or hub id (kind=hub), or a transformers model_type (kind=random)."""
    revision: str | None = plain(role=Role.CONTENT)
    """Branch, tag or commit on the hub; null takes the newest."""
    trust_remote_code: bool = plain(False, role=Role.COSMETIC)
    """Allow modelling code from the model's repository to run."""
    allow_partial: bool = plain(False, role=Role.COSMETIC)
    """Accept a checkpoint with missing or unexpected weights. Missing ones are random, and the cells are marked as
    invalid."""
    experts_implementation: str = choice(
        "auto", EXPERTS_IMPLEMENTATIONS, role=Role.MEANS, transformers_only="; vLLM has its own"
    )
    """Implementation of the expert computation; auto takes the fastest one for the device."""
    device_map: Any = plain(role=Role.MEANS, transformers_only=TENSOR_PARALLEL)
    """Placement of layers on the GPUs of one process: auto, a device, or {module: device}; null: all on `device`. The
    value goes to transformers as it is."""
    parallel: str | None = choice(None, PARALLEL, role=Role.MEANS, transformers_only=TENSOR_PARALLEL)
    """Split over the ranks of torchrun: tensor parallel (tp) or expert parallel (ep); null: one process."""
    adapter: str | None = plain(role=Role.CONTENT, path=True, transformers_only="; merge it, and save the model")
    """Folder of a PEFT adapter (LoRA and its like), which is merged into the weights."""
    sizes: dict[str, int] = plain(role=Role.CONTENT, factory=dict)
    """Sizes of a random model, by names that are the same for every family. Give all of experts, top_k, layers, hidden,
    expert_hidden, heads, kv_heads, vocab and positions; empty: the family's default configuration."""
    config: dict[str, Any] = plain(role=Role.CONTENT, factory=dict)
    """With kind=random, fields of the transformers configuration, by the names of the model family."""
    seed: int = integer(0, 0, LARGEST_SEED, role=Role.CONTENT)
    """With kind=random, the seed of the weights."""
    shape: dict[str, Any] = plain(role=Role.COSMETIC, factory=dict)
    """What plan=true assumes of a hub model that is not on this machine yet. That is its model_type and fields of its
    configuration. Nothing else reads them; once the configuration is here, they are checked against it."""
    published: dict[str, Any] = plain(role=Role.COSMETIC, factory=dict)
    """For each policy, the parameters that were published for this model. They are the policy's defaults; a value on
    the command line takes precedence."""

    checkpoint: CheckpointConfig = node(CheckpointConfig)
    """What a preset says of the checkpoint's own files."""
    instruct: str | None = plain(role=Role.COSMETIC)
    """The preset of the instruction-tuned model; a study at scale=paper uses it where the paper did."""

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        if self.id == MISSING:
            raise ValueError("model.id is missing: give a folder or a hub id, as in model=hub model.id=PATH_OR_HUB_ID")
        _check_device_map(self.device_map)
        if self.device_map is not None and self.parallel is not None:
            raise ValueError(f"model.parallel={self.parallel}: not with model.device_map; one process or many ranks")
        if self.kind == "random" and (self.parallel or self.device_map) is not None:
            field = "parallel" if self.parallel else "device_map"
            raise ValueError(
                f"model.{field}={getattr(self, field)}: random weights are made, not loaded, on one device; for more "
                "save them with save_pretrained and give model=hub model.id=FOLDER"
            )
        if self.adapter is not None and (self.kind == "random" or self.parallel is not None):
            given = "kind=random" if self.kind == "random" else f"parallel={self.parallel}"
            raise ValueError(f"model.adapter={self.adapter}: not with model.{given}; merge it, and save the model")
        for name in ("sizes", "config"):
            if getattr(self, name) and self.kind != "random":
                given = f"model.{name}={getattr(self, name)}"
                raise ValueError(f"{given}: only model=random takes any, not model.kind={self.kind}")
        if self.sizes:
            _check_sizes(self.sizes)
        self._check_preset()

    def _check_preset(self) -> None:
        """Raise ValueError for a preset whose `shape` or `published` cannot describe a model."""
        if self.shape and self.kind != "hub":
            raise ValueError(f"model.shape={self.shape}: only a model of kind=hub takes one, not kind={self.kind}")
        if self.shape and not isinstance(self.shape.get("model_type"), str):
            raise ValueError(f"model.shape={self.shape}: must name its model_type, such as mixtral")
        for policy, parameters in self.published.items():
            if not isinstance(parameters, dict) or not parameters:
                raise ValueError(f"model.published.{policy}={parameters}: must be parameters of the policy")


@dataclass(kw_only=True)
class GenerationConfig:
    """How a generate task samples and stops; null keeps the value of the task's definition."""

    source: str = choice("task", GENERATIONS, role=Role.CONTENT)
    """Where fields that are null come from: the task, or the model's generation_config.json. It concerns temperature,
    top_p and top_k; a model that does not sample by default is greedy. task.generation=model sets it."""
    temperature: float | None = plain(role=Role.CONTENT)
    """Temperature of sampling: 0 (greedy), or 0.001 to 1000. Each request has its own seed, whichever requests share
    its lane."""
    top_p: float | None = plain(role=Role.CONTENT)
    """Sample from the most probable tokens that together have this probability: above 0, at most 1."""
    top_k: int | None = integer(None, 1, role=Role.CONTENT)
    """Sample from this number of most probable tokens."""
    max_gen_toks: int | None = integer(None, 1, role=Role.CONTENT)
    """Maximum number of tokens of a response."""
    until: list[str] | None = plain(role=Role.CONTENT)
    """Strings that end a response."""

    def __post_init__(self) -> None:
        check_fields(self, "task.generation.")
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
    """Raise ValueError for a stop string that would end no response, or every one."""
    if not text:
        raise ValueError("task.generation.until=['']: an empty string would end every response at once; leave it out")
    if "\\n" in text:
        raise ValueError(
            f"task.generation.until=['{text}']: holds a backslash and an n, not a line break; in a shell type "
            '$\'task.generation.until=["\\n"]\', in YAML "\\n"'
        )


def _smallest(weights: list[float]) -> list[float]:
    """Bring equal shares to one form, so that they give one cell id: the smallest whole numbers in the same ratio.

    `[2, 2]` becomes `[1, 1]`. Weights whose ratio needs large numbers stay as they are.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    whole = [int(share * math.lcm(*(each.denominator for each in exact))) for share in exact]
    shares = [number // math.gcd(*whole) for number in whole]
    return [float(share) for share in shares] if max(shares) <= _LARGEST_SHARE else weights


_LARGEST_SHARE = 1000
_SIZES = ("documents", "prompt", "example", "choices", "choice")


def _check_task_size(name: str, size: object) -> None:
    """Raise ValueError for an impossible `task.size` of one subtask."""
    where = f"task.size.{name}"
    if not isinstance(size, dict) or not {"documents", "prompt"} <= size.keys():
        raise ValueError(f"{where}={size}: must give documents and prompt, and may give {', '.join(_SIZES[2:])}")
    for key, value in size.items():
        one_of(where, key, _SIZES)
        at_least(f"{where}.{key}", value, 1)
    if ("choices" in size) != ("choice" in size):
        raise ValueError(f"{where}={size}: must give both choices and choice, or neither")


@dataclass(kw_only=True)
class TaskConfig:
    """One or more lm-eval tasks that are reported together; the names are those of lm-eval's command line."""

    name: str = plain(MISSING, role=Role.COSMETIC)
    """Name of the task in the results."""
    subtasks: list[str] = plain(MISSING, role=Role.QUESTION)
    """Names of lm-eval tasks, or YAML files that define one."""
    data: str = plain("hub", role=Role.CONTENT, path=True)
    """Source of the documents: hub, or a file or folder with the same fields. Files may be JSON, JSON Lines, either of
    them as .gz, or parquet, and need no network."""
    revision: str | None = plain(role=Role.CONTENT)
    """Branch, tag or commit of the data set on the hub; null takes the newest."""
    num_fewshot: int | None = integer(None, 0, role=Role.CONTENT)
    """Number of few-shot examples before each question; null keeps the task's own."""
    fewshot_seed: int = integer(1234, 0, LARGEST_SEED, role=Role.CONTENT)
    """Seed of the selection of few-shot examples, for tasks that draw them at random."""
    apply_chat_template: bool = plain(False, role=Role.CONTENT)
    """Format prompts as a conversation, with the chat template of the model's tokenizer."""
    fewshot_as_multiturn: bool = plain(True, role=Role.CONTENT)
    """With a chat template, make each few-shot example a turn of its own."""
    chat_template_args: dict[str, Any] = plain(role=Role.CONTENT, factory=dict)
    """Further arguments of the chat template, such as enable_thinking."""
    thinking: bool | None = plain(role=Role.CONTENT)
    """Switch thinking on or off by the flag of the chat template; null keeps the template's default. When it is true,
    think_end=null means auto."""
    think_end: str | None = plain(role=Role.CONTENT)
    """Text or token id that ends a thought, as lm-eval's think_end_token. The answer is the text after it, and stop
    strings have no effect before it. auto: the one known for the tokenizer; null: responses have no thoughts."""
    system_instruction: str | None = plain(role=Role.CONTENT)
    """Text to put before the prompt; with a chat template it is the system turn."""
    repeats: int | None = integer(None, 1, MOST_ROWS, role=Role.CONTENT)
    """Number of sampled responses to each document; null keeps the task's own. Each is scored, and the document's score
    is their mean (avg@k); a task with majority voting or pass@k keeps its own metric."""
    generation: GenerationConfig = node(GenerationConfig)
    """How the task samples and stops."""
    weights: list[float] | None = plain(role=Role.QUESTION)
    """A share for each subtask, which mixes their requests into one stream; null keeps the subtasks apart."""
    mixing: str = choice("shuffled", MIXINGS, role=Role.QUESTION, unless=("task.weights", (None,)))
    """With weights, whether a lane holds requests of all subtasks or only of one (the control)."""
    size: dict[str, Any] = plain(role=Role.COSMETIC, factory=dict)
    """For each subtask, what plan=true assumes of documents that are not on this machine yet. Keys: documents (their
    number), prompt and example (bytes of each), choices (number per document) and choice (bytes of each). The name of
    a group stands for each of its tasks. Nothing else reads it."""

    def __post_init__(self) -> None:
        if not self.subtasks:
            raise ValueError(f"task.subtasks=[]: task {self.name} needs at least one")
        if len(set(self.subtasks)) < len(self.subtasks):
            raise ValueError(f"task.subtasks={self.subtasks}: names one twice")
        check_fields(self, "task.")
        if self.think_end is not None and not self.think_end.strip():
            raise ValueError(f"task.think_end={self.think_end!r}: must be the text that ends a thought, auto, or null")
        if self.thinking is not None and not self.apply_chat_template:
            raise ValueError(
                f"task.thinking={str(self.thinking).lower()}: is a flag of the chat template; give "
                "task.apply_chat_template=true"
            )
        for name, size in self.size.items():
            _check_task_size(name, size)
        if self.weights is not None and (
            len(self.weights) != len(self.subtasks) or not all(0 < weight < math.inf for weight in self.weights)
        ):
            raise ValueError(
                f"task.weights={self.weights}: must give a number above 0 for each of task.subtasks={self.subtasks}"
            )
        if self.weights is not None:
            self.weights = _smallest(self.weights)


@dataclass(kw_only=True)
class MeasureConfig:
    """How decode steps are timed: in windows drawn from the cell's own run, interleaved with vanilla."""

    latency: bool = plain(False, role=Role.RECORD)
    """Time decode steps of the policy, interleaved with the same steps of vanilla."""
    windows: int = integer(10, 2, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """Minimum number of windows to time. A window starts at a place (lane, step) of the run, drawn by the cell's seed.
    A policy's gain differs by 2 to 3 % between lanes, which an interval over fewer windows could not show."""
    max_windows: int = integer(24, 1, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """Maximum number of windows, if the precision is not reached earlier. A vanilla cell never needs more than
    `windows`."""
    new_tokens: int = integer(4, 1, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """Consecutive decode steps per window. Another window tells more than further steps of the same one."""
    repeats: int = integer(2, 1, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """How often each window is timed. One untimed run comes before; for the first window, 2 to 10 rounds of
    warm-up."""
    precision: float = plain(0.02, role=Role.RECORD, unless=UNTIMED)
    """Timing stops when half the width of the speed-up's 95 % interval is below this fraction of it: above 0, below 1.
    A policy's own code costs a few percent, which a coarser interval could not show. That interval takes windows for
    independent; where that of the tables, which does not, is wider than twice this, the time is not final (`~`)."""
    context: int | None = integer(None, 1, role=Role.RECORD, unless=UNTIMED, transformers_only="")
    """Context length of every row of a window: its own tokens, repeated or cut; null keeps its own length."""
    prefill: bool = plain(False, role=Role.RECORD, unless=UNTIMED, transformers_only="")
    """Also time the prefill of the first window's prompts."""
    breakdown: bool = plain(False, role=Role.RECORD, unless=UNTIMED, transformers_only="")
    """Also time the sections of a decode step: attention, router, policy, experts, rest."""

    def __post_init__(self) -> None:
        check_fields(self, "measure.")
        if self.max_windows < self.windows:
            raise ValueError(f"measure.max_windows={self.max_windows}: must be at least measure.windows={self.windows}")
        if not 0 < self.precision < 1:
            raise ValueError(f"measure.precision={self.precision:g}: must be above 0 and below 1")
        for name in ("prefill", "breakdown"):
            if getattr(self, name) and not self.latency:
                raise ValueError(f"measure.{name}=true: needs measure.latency=true")


@dataclass(kw_only=True)
class PackConfig:
    """How many lanes and cells share a forward pass. This changes the speed, not the results."""

    max_rows: int = integer(256, 1, MOST_ROWS, role=Role.COSMETIC)
    """Maximum number of rows of one physical batch, unless a lane is wider. On a CPU more than 256 gain nothing."""
    memory_gib: float | None = plain(role=Role.COSMETIC)
    """Memory for keys, values and prefilled prompts in GiB, above 0; null chooses a safe amount. That is half of a
    CPU's available memory, or 80 % of a GPU's free memory."""
    max_cells: int = integer(48, 1, role=Role.COSMETIC)
    """Maximum number of cells of one pack, which all finish at about the same time."""
    checkpoint_minutes: float = plain(10.0, role=Role.COSMETIC)
    """Minutes between two writings of where lanes under way stand; 0: never. A killed run goes on from there, within a
    lane; without it, lanes under way are lost. Writing takes 2 % of the time at most."""

    def __post_init__(self) -> None:
        check_fields(self, "pack.")
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise ValueError(f"pack.memory_gib={self.memory_gib:g}: must be above 0, or null")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ValueError(f"pack.checkpoint_minutes={self.checkpoint_minutes:g}: must be at least 0 (0: never)")


@dataclass(kw_only=True)
class VllmConfig:
    """Settings of the vLLM engine, with backend=vllm."""

    prefix_caching: bool = plain(False, role=Role.MEANS, unless=NOT_VLLM)
    """Reuse keys and values between requests whose prompts begin alike. Without it each lane computes its own."""
    max_num_batched_tokens: int = integer(16384, 1, role=Role.MEANS, unless=NOT_VLLM)
    """Maximum number of tokens of one step. All prompts of a lane must fit, so that its requests decode together."""
    enforce_eager: bool = plain(True, role=Role.MEANS, unless=NOT_VLLM)
    """Run the model uncompiled; false uses torch.compile, which works on a CPU only. On a GPU it would also record CUDA
    graphs, which lanes do not support."""
    engine_args: dict[str, Any] = plain(role=Role.MEANS, factory=dict, unless=NOT_VLLM)
    """Further arguments of vllm.LLM, such as tensor_parallel_size or moe_backend."""

    def __post_init__(self) -> None:
        check_fields(self, "vllm.")
        for name in OURS_IN_VLLM:
            if name in self.engine_args:
                raise ValueError(f"vllm.engine_args.{name}: is set from other fields (model, dtype, pack, vllm)")


OURS_IN_VLLM = (
    *("model", "revision", "trust_remote_code", "dtype", "max_num_seqs", "kv_cache_memory_bytes", "logits_processors"),
    *("max_num_batched_tokens", "enable_prefix_caching", "enforce_eager", "additional_config", "async_scheduling"),
)
"""Arguments of `vllm.LLM` that have configuration fields of their own, and are refused in `vllm.engine_args`."""


@dataclass(kw_only=True)
class TrackerConfig:
    """Where to report finished cells, besides their folder."""

    name: str = choice("none", TRACKERS, role=Role.COSMETIC)
    """The tracker to report to."""
    project: str = plain("lynx_exp", role=Role.COSMETIC)
    """Project of Weights & Biases."""
    entity: str | None = plain(role=Role.COSMETIC)
    """User or team of Weights & Biases; null is your default."""
    mode: str = choice("offline", WANDB_MODES, role=Role.COSMETIC)
    """Whether to upload at once; offline keeps files that `lynx-results sync` uploads later."""
    tags: list[str] = plain(role=Role.COSMETIC, factory=list)
    """Tags to add to every run."""
    wait_s: float = plain(1.0, role=Role.COSMETIC)
    """Seconds to wait, at the end of a run, for uploads that make no progress: at least 0. They then continue in the
    background. Give more if the machine disappears with the job; `lynx-results sync` uploads what was lost."""

    def __post_init__(self) -> None:
        if not 0 <= self.wait_s < math.inf:
            raise ValueError(f"tracker.wait_s={self.wait_s:g}: must be at least 0 (seconds)")
        check_fields(self, "tracker.")
