"""Load a model by name, path, hub id or configuration; the bundled one needs no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from lynx_exp.models.adapter import check_adapter, merged
from lynx_exp.models.checkpoint import damage, differences, one_line, quantization
from lynx_exp.models.placement import DeviceMap, placement, refuse_offloading
from lynx_exp.models.places import locate


class Weights(NamedTuple):
    """What a checkpoint gave."""

    model: PreTrainedModel
    """In eval mode."""
    partial: str | None
    """Which weights checkpoint and model do not share; None: they share all."""


def load_tokenizer(
    model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """ValueError, in one line, if it cannot be found or read."""
    where = locate(model)
    with _refused_in_one_line(model, where, "its tokenizer"):
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)


def load_weights(
    model: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    experts_implementation: str | None = None,
    trust_remote_code: bool = False,
    allow_partial: bool = False,
    device_map: DeviceMap | None = None,
    parallel: str | None = None,
    adapter: str | None = None,
) -> Weights:
    """ValueError, in one line, if it cannot be found or read, not be spread as asked, or where some of its weights are
    missing, of another shape, or have no place in it (with `allow_partial` it is loaded: what is missing is random).

    Attention is computed as the model's class prefers: by torch's scaled dot products, where it can. `device_map`: as
    transformers takes it, instead of `device`. `parallel`: tp or ep, over the ranks of torchrun. `adapter`: a folder of
    PEFT's, which is merged.
    """
    where = locate(model)
    if adapter is not None:
        check_adapter(adapter)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _refused_in_one_line(model, where, "it"), _quiet(), torch.random.fork_rng(enabled=allow_partial, devices=[]):
        spread = {}
        if device_map is not None or parallel is not None:
            config = AutoConfig.from_pretrained(where, **common)
            spread = placement(config, device=device, device_map=device_map, parallel=parallel)
        if allow_partial:
            torch.manual_seed(0)  # what is missing is the same whenever it is loaded
        loaded, info = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            experts_implementation=experts_implementation,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **spread,
            **common,
        )
    partial = differences(info)
    if partial is not None and not allow_partial:
        raise ValueError(f"model={model}: {partial}; model.allow_partial=true runs it, with random ones")
    refuse_offloading(device_map, getattr(loaded, "hf_device_map", None) or {})
    if adapter is not None:
        loaded = merged(loaded, adapter)
    return Weights((loaded if spread else loaded.to(device)).eval(), partial)


TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab.*", "merges.txt", "*.tiktoken")


@contextmanager
def _refused_in_one_line(model: str, where: str, what: str) -> Iterator[None]:
    """Whatever a library raises about a checkpoint, as ValueError; but what this machine lacks (memory, a package)."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        method = quantization(where)
        if method is None or what != "it":
            raise
        said = one_line(error).rstrip(".")
        raise ValueError(f"model={model}: {what} is quantised by {method}, which does not load here: {said}") from error
    except Exception as error:  # every architecture, and every file format, fails in its own way
        if isinstance(error, RuntimeError) and re.search("allocate|out of memory", str(error)):
            raise
        folder = Path(where)
        found = damage(folder) if folder.is_dir() else None
        if (
            found is None
            and what != "it"
            and folder.is_dir()
            and not any(path for name in TOKENIZER_FILES for path in folder.glob(name))
        ):
            found = "the folder holds none; `tokenizer.save_pretrained(folder)` writes it there"
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise ValueError(f"model={model}: {what} cannot be loaded: {found or kind + one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of what it loaded: `Weights.partial` has it."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def random_model(
    model_type: str,
    config: dict[str, object],
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    experts_implementation: str | None = None,
) -> PreTrainedModel:
    """A model of any transformers architecture with random weights, for latency work and tests.

    They are drawn where they will lie: by a CPU's one core 30 B parameters take minutes. So the numbers that a seed
    gives differ between kinds of devices; their distribution does not.
    """
    try:
        resolved = AutoConfig.for_model(model_type, **config)
    except ValueError as error:
        raise ValueError(f"model.config.model_type={model_type}: unknown to the installed transformers") from error
    torch.manual_seed(seed)
    with device:
        built = AutoModelForCausalLM.from_config(resolved, dtype=dtype, experts_implementation=experts_implementation)
    return built.to(device).eval()
