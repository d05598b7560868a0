"""What cells will take: time, from what cells like them took before; memory, from the shape of the model."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from lynx_exp.run.storage import bytes_of_weight, kept_storage
from lynx_exp.store.done import is_done
from lynx_exp.store.file_forms import FINISHED_CELL
from lynx_exp.store.file_types import CellInfo
from lynx_exp.store.reading import Damaged, read_value, value_or_empty

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lynx_exp.config import ModelConfig
    from lynx_exp.run.planned_cell import Cell

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Throughput:
    """Seconds a request, by what was run: read from the finished cells below a folder of results."""

    def __init__(self, results: Iterable[Path], *, gpu: str = "") -> None:
        """`gpu`: only of cells that ran on GPUs whose names, as the driver gives them, have this in it."""
        self._gpu = gpu
        self._costs: dict[tuple[str, ...], list[tuple[int, float]]] = defaultdict(list)
        self.cells = 0
        """Finished cells that say how long they took."""
        for root in results:
            for path in root.rglob("cell.json") if root.is_dir() else ():
                self._learn(path.parent)

    def _learn(self, folder: Path) -> None:
        if not is_done(folder):
            return
        try:
            info = read_value(folder / "cell.json", FINISHED_CELL)
            status, plan = (read_value(folder / name) for name in ("status.json", "plan.json"))
        except Damaged:
            return
        if self._gpu and not _ran_on(folder, self._gpu):
            return
        requests = sum(len(lane) for task in plan.values() for lane in task["lanes"])
        seconds = (status.get("seconds") or 0.0) / (status.get("together") or 1)
        if not requests or len(status.get("attempts") or []) > 0:  # of a cell that was resumed only the end is known
            return
        self.cells += 1
        timed = str((folder / "timing.json").exists())
        for key in _keys(cast(CellInfo, info), timed):
            self._costs[key].append((requests, seconds))

    def seconds(self, cell: Cell) -> float | None:
        """None if no cell of this model has been run on this kind of device."""
        if not self.cells:
            return None
        key = self._key(cell)
        return None if key is None else seconds_for(_num_requests(cell), self._costs[key])

    def stretch(self, cell: Cell) -> float:
        """Requests of the cell for each one that its estimate comes from; 0 where there is none."""
        key = self._key(cell)
        return 0.0 if key is None else _num_requests(cell) / sum(requests for requests, _ in self._costs[key])

    def _key(self, cell: Cell) -> tuple[str, ...] | None:
        keys = _keys(cell.info(), str(cell.config.measure.latency))
        return next((key for key in keys if self._costs.get(key)), None)


def _ran_on(folder: Path, gpu: str) -> bool:
    """Whether a cell's record names such GPUs only."""
    torch = value_or_empty(folder / "provenance.json").get("torch")
    names = torch.get("gpus") if isinstance(torch, dict) else None
    return isinstance(names, list) and bool(names) and all(gpu in str(name) for name in names)


def seconds_for(requests: int, costs: Sequence[tuple[int, float]]) -> float:
    """What so many requests take, by (requests, seconds) of cells that were run.

    A line through them where their sizes differ, since what a cell costs whatever its size is most of what a tiny one
    takes; else in proportion, which for many more requests than those had is too much rather than too little.
    """
    total, spent = sum(size for size, _ in costs), sum(seconds for _, seconds in costs)
    mean = total / len(costs)
    spread = sum((size - mean) ** 2 for size, _ in costs)
    if len(costs) > 2 and spread > 0.25 * mean**2 * len(costs):
        slope = sum((size - mean) * seconds for size, seconds in costs) / spread
        fixed = spent / len(costs) - slope * mean
        if slope > 0 and fixed > 0:
            return fixed + slope * requests
    return spent / total * requests


def _num_requests(cell: Cell) -> int:
    return sum(len(task.requests) for task in cell.tasks)


def _keys(info: CellInfo, timed: str) -> list[tuple[str, ...]]:
    """What is alike, most alike first."""
    base = (str(info["model"]), str(info.get("device")), str(info.get("dtype")), timed)
    return [(*base, str(info["task"]), str(info["batch_size"])), (*base, str(info["task"])), base]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a model needs, in GiB."""

    weights: float
    keys_and_values: float
    """Of one row at the longest that a cell asks for."""
    rows: int
    """Of a physical batch at most."""
    available: float | None
    """On the device; None where that is not known here."""

    @property
    def rows_that_fit(self) -> int | None:
        """Beside the weights, in the share of what is left that the engine takes."""
        if self.available is None or self.keys_and_values == 0:
            return None
        return max(0, int(_SHARE * (self.available - self.weights) / self.keys_and_values))


_SHARE = 0.5
"""Of a CPU's memory; of a GPU's the engine takes more."""


def memory_of(cell: Cell, positions: int) -> Memory | None:
    """None if the model's class cannot be built from its configuration alone."""
    shape = shape_of(cell)
    if shape is None:
        return None
    size = BYTES.get(cell.dtype, 4)
    storage = kept_storage(cell, cell.device)
    held = None if storage is None else _stored(*architecture(cell), size, storage)
    return Memory(
        weights=(shape.parameters * size if held is None else held) / GIB,
        keys_and_values=(shape.position * size * positions + shape.row) / GIB,
        rows=max(cell.config.pack.max_rows, cell.config.batch_size),
        available=_available(cell.device),
    )


class Shape(NamedTuple):
    """Of a model, as far as memory goes."""

    parameters: int
    position: float
    """Numbers of one position's keys and values, all layers."""
    row: int
    """Bytes of a row's states, which do not grow with it."""


def shape_of(cell: Cell) -> Shape | None:
    """None if the model's class cannot be built from its configuration alone."""
    return _shape_of(*architecture(cell), cell.model.num_experts)


def architecture(cell: Cell) -> tuple[str, str, str | None, bool, str]:
    """What `weightless` takes. A model that is not here is as its preset declares it."""
    model = cell.config.model
    if not cell.model.declared:
        return model.kind, model.id, model.revision, model.trust_remote_code, random_json(model)
    fields = dict(model.shape)
    return "random", fields.pop("model_type"), None, False, json.dumps(fields, sort_keys=True)


@cache
def _shape_of(kind: str, name: str, revision: str | None, trust: bool, fields: str, experts: int) -> Shape | None:
    from lynx_exp.models import locate

    folder = None if kind == "random" else Path(locate(name))
    of_files = None if folder is None else _parameters_of_files(folder)
    if folder is not None and of_files is not None and (kept := _kept_by_config(folder)) is not None:
        return Shape(of_files, kept, 0)  # without transformers' models, which take seconds to import
    model = weightless(kind, name, revision, trust, fields)
    if model is None:
        return None
    from lynx_exp.engine.timing.weightless_bytes import weightless_bytes

    parameters = of_files or sum(p.numel() for p in model.parameters())
    read = weightless_bytes(model, experts)
    if read is not None:
        return Shape(parameters, read.position / BYTES["float32"], read.row)
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 0)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(parameters, 2 * text.num_hidden_layers * heads * width, 0)


@cache
def _stored(
    kind: str, name: str, revision: str | None, trust: bool, fields: str, width: int, storage: str
) -> float | None:
    """Bytes of its weights as they are stored; None if the model cannot be built from its configuration."""
    model = weightless(kind, name, revision, trust, fields)
    if model is None:
        return None
    return sum(bytes_of_weight(parameter, weight, width, storage) for parameter, weight in model.named_parameters())


def _parameters_of_files(folder: Path) -> int | None:
    """From the heads of a folder's safetensors files; None where those do not tell."""
    try:
        files = sorted(folder.glob("*.safetensors"))
        if not files or "quantization_config" in json.loads((folder / "config.json").read_text()):
            return None
        return sum(_numbers_in(path) for path in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # whoever loads it says what is wrong


_OTHER_ATTENTION = ("kv_lora_rank", "layer_types", "global_head_dim", "per_layer_config", "linear_num_key_heads")
"""Fields of models that keep something else than keys and values of all heads in all layers."""


def _kept_by_config(folder: Path) -> int | None:
    """Numbers of one position's keys and values by config.json; None where it takes the model's class to tell."""
    try:
        config = json.loads((folder / "config.json").read_text())
        text = config.get("text_config", config)
        if any(text.get(field) for field in _OTHER_ATTENTION):
            return None
        width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        return 2 * int(text["num_hidden_layers"]) * int(heads) * int(width)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RecursionError):
        return None  # whoever loads it says what is wrong


def _numbers_in(path: Path) -> int:
    """Of all tensors of a safetensors file, by its header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path}: cut off")
        header = json.loads(file.read(size))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def random_json(model: ModelConfig) -> str:
    """The fields that a random model's configuration is given, as `weightless` takes them; `{}` for any other model."""
    if model.kind != "random":
        return "{}"
    from lynx_exp.models.family_sizes import random_fields

    return json.dumps(random_fields(model.id, model.sizes, model.config), sort_keys=True)


def weightless(kind: str, name: str, revision: str | None, trust: bool, fields: str) -> PreTrainedModel | None:
    """The model on the meta device; None if its class cannot be built from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lynx_exp.models import locate

    try:
        if kind == "random":
            config = AutoConfig.for_model(name, **json.loads(fields))
        else:
            config = AutoConfig.from_pretrained(locate(name), revision=revision, trust_remote_code=trust)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust, dtype=torch.float32)
    except Exception:  # each architecture has its own way to say that it cannot
        return None


def _available(device: str) -> float | None:
    import torch

    if device == "cuda":
        if not torch.cuda.is_available():
            return None
        return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())) / GIB
    if device != "cpu":
        return None
    from lynx_exp.engine.kv_cache.memory import available_memory

    return available_memory() / GIB
