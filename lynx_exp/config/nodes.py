"""The nodes of a cell's configuration: model, task and how it is asked, measuring, packs, vLLM, tracker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lynx_exp.config.allowed import check_fields, choice, integer
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
"""What to do instead, with backend=vllm."""
UNTIMED = ("measure.latency", (False, None))
"""Where nothing is timed."""
NOT_VLLM = ("backend", ("transformers",))
"""Where vLLM does not run."""


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
    """Which weights, and how their experts are computed."""

    kind: str = choice(MISSING, MODEL_KINDS, role=Role.CONTENT)
    """Where the weights come from: the package, a folder or the hub, or a random generator."""
    id: str = plain(MISSING, role=Role.CONTENT, path=True)
    """Name (bundled), folder or hub id (hub), or transformers model_type (random) of the model."""
    revision: str | None = plain(role=Role.CONTENT)
    """Branch, tag or commit on the hub; null is its newest."""
    trust_remote_code: bool = plain(False, role=Role.COSMETIC)
    """Run modelling code that comes with the weights."""
    allow_partial: bool = plain(False, role=Role.COSMETIC)
    """Run a checkpoint that lacks weights of its model, or has weights too many. Random ones take the place of those
    that it lacks, and its cells are marked."""
    experts_implementation: str = choice(
        "auto", EXPERTS_IMPLEMENTATIONS, role=Role.MEANS, transformers_only="; vLLM has its own"
    )
    """How the experts are multiplied by; auto takes the fastest for the device."""
    device_map: Any = plain(role=Role.MEANS, transformers_only=TENSOR_PARALLEL)
    """Layers over the GPUs of one process: auto, a device, or {module: device}; null: all on `device`. As transformers
    takes it."""
    parallel: str | None = choice(None, PARALLEL, role=Role.MEANS, transformers_only=TENSOR_PARALLEL)
    """Over the ranks of torchrun: every layer in slices (tp) or whole experts (ep); null: one process."""
    adapter: str | None = plain(role=Role.CONTENT, path=True, transformers_only="; merge it, and save the model")
    """Folder of a PEFT adapter (LoRA and its like), which is merged into the weights."""
    sizes: dict[str, int] = plain(role=Role.CONTENT, factory=dict)
    """Sizes of a random model, in words that any family understands. All of experts, top_k, layers, hidden,
    expert_hidden, heads, kv_heads, vocab, positions; empty: those of the family's default configuration."""
    config: dict[str, Any] = plain(role=Role.CONTENT, factory=dict)
    """Fields of the architecture's configuration, by the family's own names, with kind=random."""
    seed: int = integer(0, 0, LARGEST_SEED, role=Role.CONTENT)
    """Seed of the weights, with kind=random."""
    shape: dict[str, Any] = plain(role=Role.COSMETIC, factory=dict)
    """What plan=true goes by before a model of kind=hub is here. That is model_type, and fields of its configuration.
    Nothing else reads it; once the configuration is there it is held against it."""
    published: dict[str, Any] = plain(role=Role.COSMETIC, factory=dict)
    """By policy, the parameters that were published for this model. A policy that is chosen has them, but for those
    that are given."""

    instruct: str | None = plain(role=Role.COSMETIC)
    """The preset of the same model tuned to instructions: a study at scale=paper takes it where the paper did."""

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
        """ValueError for what a preset cannot say of its model."""
        if self.shape and self.kind != "hub":
            raise ValueError(f"model.shape={self.shape}: only a model of kind=hub takes one, not kind={self.kind}")
        if self.shape and not isinstance(self.shape.get("model_type"), str):
            raise ValueError(f"model.shape={self.shape}: must name its model_type, such as mixtral")
        for policy, parameters in self.published.items():
            if not isinstance(parameters, dict) or not parameters:
                raise ValueError(f"model.published.{policy}={parameters}: must be parameters of the policy")


@dataclass(kw_only=True)
class GenerationConfig:
    """What to change of how a task generates; null is as its definition says."""

    source: str = choice("task", GENERATIONS, role=Role.CONTENT)
    """Whose sampling counts where the fields below are null: task, or model, by its generation_config.json.
    That is temperature, top_p and top_k; greedy if it does not sample. task.generation=model sets it."""
    temperature: float | None = plain(role=Role.CONTENT)
    """Temperature of sampling: 0 (greedy), or 0.001 to 1000. Each request draws from its own seed, whoever shares its
    lane."""
    top_p: float | None = plain(role=Role.CONTENT)
    """Draw from the likeliest tokens that hold this probability: above 0, at most 1."""
    top_k: int | None = integer(None, 1, role=Role.CONTENT)
    """Draw from so many of the likeliest tokens."""
    max_gen_toks: int | None = integer(None, 1, role=Role.CONTENT)
    """Tokens of a response, at most."""
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
    """ValueError for a string that ends no response, or every one."""
    if not text:
        raise ValueError("task.generation.until=['']: an empty string would end every response at once; leave it out")
    if "\\n" in text:
        raise ValueError(
            f"task.generation.until=['{text}']: holds a backslash and an n, not a line break; in a shell type "
            '$\'task.generation.until=["\\n"]\', in YAML "\\n"'
        )


def _smallest(weights: list[float]) -> list[float]:
    """The same shares in the smallest whole numbers: `[2, 2]` is `[1, 1]`. As they are where those are large."""
    exact = [Fraction(str(weight)) for weight in weights]
    whole = [int(share * math.lcm(*(each.denominator for each in exact))) for share in exact]
    shares = [number // math.gcd(*whole) for number in whole]
    return [float(share) for share in shares] if max(shares) <= _LARGEST_SHARE else weights


_LARGEST_SHARE = 1000
_SIZES = ("documents", "prompt", "example", "choices", "choice")


def _check_task_size(name: str, size: object) -> None:
    """ValueError for what is declared of a subtask's documents and cannot be."""
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
    """One or more lm-eval tasks reported together, and how they are asked (names as in lm-eval's command line)."""

    name: str = plain(MISSING, role=Role.COSMETIC)
    """What the task is called in results."""
    subtasks: list[str] = plain(MISSING, role=Role.QUESTION)
    """Names of lm-eval tasks, or YAML files that define one."""
    data: str = plain("hub", role=Role.CONTENT, path=True)
    """Where the documents are: hub, or a file or folder of files with the same fields. JSON, JSON Lines, their .gz or
    parquet; then no network is needed."""
    revision: str | None = plain(role=Role.CONTENT)
    """Branch, tag or commit of the hub's data set; null is its newest."""
    num_fewshot: int | None = integer(None, 0, role=Role.CONTENT)
    """Examples before each question; null is as the task is defined."""
    fewshot_seed: int = integer(1234, 0, LARGEST_SEED, role=Role.CONTENT)
    """Seed of the choice of examples, where a task draws them."""
    apply_chat_template: bool = plain(False, role=Role.CONTENT)
    """Ask in turns, by the chat template of the model's tokenizer."""
    fewshot_as_multiturn: bool = plain(True, role=Role.CONTENT)
    """With a chat template, each example is a turn of its own."""
    chat_template_args: dict[str, Any] = plain(role=Role.CONTENT, factory=dict)
    """What else the chat template takes, such as enable_thinking."""
    thinking: bool | None = plain(role=Role.CONTENT)
    """Turn thinking on or off by the chat template's own flag; null: as the template does by itself. On, think_end=null
    counts as auto."""
    think_end: str | None = plain(role=Role.CONTENT)
    """Text, or number of the token, that ends a thought, as lm-eval's think_end_token. The answer is what follows it,
    and stop strings do not count before it. auto: what the tokenizer is known by; null: no thoughts are looked for."""
    system_instruction: str | None = plain(role=Role.CONTENT)
    """Text that stands before the prompt, in a turn of its own with a chat template."""
    repeats: int | None = integer(None, 1, MOST_ROWS, role=Role.CONTENT)
    """Responses to each document, with sampling; null is as the task is defined. Each is scored, and the score is their
    mean (avg@k); a task that votes among them or has a pass@k of its own keeps that."""
    generation: GenerationConfig = node(GenerationConfig)
    """What to change of how the task generates."""
    weights: list[float] | None = plain(role=Role.QUESTION)
    """A share for each subtask: all become one stream of requests, which fills lanes together."""
    mixing: str = choice("shuffled", MIXINGS, role=Role.QUESTION, unless=("task.weights", (None,)))
    """With weights: whether lanes hold requests of all subtasks, or of one each (the control)."""
    size: dict[str, Any] = plain(role=Role.COSMETIC, factory=dict)
    """By subtask, what plan=true goes by before its documents are here. That is documents, and bytes of a prompt and of
    an example; of choices how many, and the bytes of a choice; by a group's name, of each of its tasks. Nothing else
    reads it."""

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
    """Timed decode steps of windows drawn from the cell's own run, the policy's interleaved with vanilla's."""

    latency: bool = plain(False, role=Role.RECORD)
    """Time decode steps, the policy's interleaved with vanilla's."""
    windows: int = integer(10, 2, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """Places (lane, step) of the run that are timed at least, drawn by the cell's seed. Lanes differ by 2 to 3 % in
    what a policy gains; an interval over fewer places could not show it."""
    max_windows: int = integer(24, 1, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """Places that are timed at most, where precision is not reached before. A vanilla cell never needs more than
    `windows`."""
    new_tokens: int = integer(4, 1, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """Consecutive decode steps of a window. More of one place say less than another place."""
    repeats: int = integer(2, 1, MOST_ROWS, role=Role.RECORD, unless=UNTIMED)
    """Times that a window is timed. A turn that does not count comes before (for the first window, 2 to 10 rounds of
    warm-up)."""
    precision: float = plain(0.02, role=Role.RECORD, unless=UNTIMED)
    """Half the width of the speed-up's 95 % interval, relative to it, that is timed for: above 0, below 1. A policy's
    own code costs a few percent; coarser than this could not show it."""
    context: int | None = integer(None, 1, role=Role.RECORD, unless=UNTIMED, transformers_only="")
    """Tokens before each row of a window: its own, repeated or cut; null: its own as they are."""
    prefill: bool = plain(False, role=Role.RECORD, unless=UNTIMED, transformers_only="")
    """Time the prefill of the first window's prompts, too."""
    breakdown: bool = plain(False, role=Role.RECORD, unless=UNTIMED, transformers_only="")
    """Time the sections of a decode step, too: attention, router, policy, experts, rest."""

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
    """How many lanes, of how many cells, are decoded side by side. Changes speed, not results."""

    max_rows: int = integer(256, 1, MOST_ROWS, role=Role.COSMETIC)
    """Rows of one physical batch, unless a lane is wider. On a CPU more than 256 gain nothing."""
    memory_gib: float | None = plain(role=Role.COSMETIC)
    """Memory for keys, values and prefilled prompts, in GiB, above 0; null: what is safe. That is half of a CPU's
    available memory, 80 % of what a GPU has free."""
    max_cells: int = integer(48, 1, role=Role.COSMETIC)
    """Cells of one pack: all of them are finished at about the same time."""

    def __post_init__(self) -> None:
        check_fields(self, "pack.")
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise ValueError(f"pack.memory_gib={self.memory_gib:g}: must be above 0, or null")


@dataclass(kw_only=True)
class VllmConfig:
    """backend=vllm: how its engine is made."""

    prefix_caching: bool = plain(False, role=Role.MEANS, unless=NOT_VLLM)
    """Keep keys and values of prompts for requests with the same beginning. Off, each lane computes its own."""
    max_num_batched_tokens: int = integer(16384, 1, role=Role.MEANS, unless=NOT_VLLM)
    """Tokens of one step, at most. The prompts of a lane must fit, so that its requests decode in step."""
    enforce_eager: bool = plain(True, role=Role.MEANS, unless=NOT_VLLM)
    """Run the model as it is; false compiles it (torch.compile), on a CPU. Where there are CUDA graphs, lanes need
    true."""
    engine_args: dict[str, Any] = plain(role=Role.MEANS, factory=dict, unless=NOT_VLLM)
    """Whatever else vllm.LLM takes, such as tensor_parallel_size or moe_backend."""

    def __post_init__(self) -> None:
        check_fields(self, "vllm.")
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

    name: str = choice("none", TRACKERS, role=Role.COSMETIC)
    """Which tracker."""
    project: str = plain("lynx_exp", role=Role.COSMETIC)
    """Project of Weights & Biases."""
    entity: str | None = plain(role=Role.COSMETIC)
    """User or team of Weights & Biases; null is your own."""
    mode: str = choice("offline", WANDB_MODES, role=Role.COSMETIC)
    """Whether to upload: offline keeps files for `lynx-results sync`."""
    tags: list[str] = plain(role=Role.COSMETIC, factory=list)
    """Further tags of every run."""
    wait_s: float = plain(1.0, role=Role.COSMETIC)
    """Seconds that the end of a run waits for uploads that stand still, at least 0. Afterwards they go on by
    themselves. A job whose machine goes away when it ends wants more; `lynx-results sync` makes up for what is lost."""

    def __post_init__(self) -> None:
        if not 0 <= self.wait_s < math.inf:
            raise ValueError(f"tracker.wait_s={self.wait_s:g}: must be at least 0 (seconds)")
        check_fields(self, "tracker.")
