"""What is known of a model before its weights load: where it is, whether it is an MoE, how many experts it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lynx_exp.config import CheckpointConfig, ModelConfig, did_you_mean
from lynx_exp.extensions import model_sources
from lynx_exp.run.declared_checkpoint import checkpoint_mismatch, storage_in
from lynx_exp.run.declared_shape import declared_config, mismatch
from lynx_exp.store.identity import digest, folder_digest
from lynx_exp.store.provenance import scrub
from lynx_exp.wording import first_line

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "num_selected_experts",
)
LAYERS = ("num_hidden_layers", "n_layers")
COUNTS = (*LAYERS, "num_attention_heads", "n_heads", "num_key_value_heads", "hidden_size", "d_model", "vocab_size")
"""Fields that are whole numbers of at least 1 in every configuration that has them."""
CONTEXT = ("max_position_embeddings", "max_seq_len")
NESTED = ("text_config", "ffn_config")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model by its configuration."""

    name: str
    """As the user named it; a folder without the home folder's path. Random weights say so, and which they are."""
    digest: str
    """Equal for equal weights and tokenizer."""
    num_experts: int
    top_k: int
    num_layers: int
    context: int | None = None
    """Positions that its configuration names; None: none, or another name for them."""
    model_type: str = ""
    slotless: str | None = None
    """Why its rows cannot enter a decode batch at any time; None: they can."""
    declared: bool = False
    """Whether it is not here, and known by `model.shape` alone."""
    mismatch: str | None = None
    """Where `model.shape` is not what it says of itself."""
    files_differ: str | None = None
    """Where `model.checkpoint` is not what its files say."""
    storage: str | None = None
    """How its weights are stored, in the words of `model.checkpoint.storage` or by its quantisation's own name."""


class ModelUnavailable(ValueError):
    """The model is neither a folder nor in the hub's cache, and the hub does not give it."""


def known_facts(model: ModelConfig, *, plan: bool) -> ModelFacts:
    """`inspect_model`; for a plan, of a model that is not here, what its preset declares."""
    try:
        return inspect_model(model)
    except ModelUnavailable:
        if not plan or not model.shape:
            raise
    config = declared_config(model.shape).to_dict()
    facts = _facts(model, config, digest({"declared": model.shape, "id": model.id}))
    return replace(facts, declared=True, storage=model.checkpoint.storage)


def context_of(model: ModelConfig) -> int | None:
    """Positions of a model that is here or declared; None where they cannot be told."""
    try:
        return known_facts(model, plan=True).context
    except ValueError:  # whoever checks the cells says what is wrong
        return None


def inspect_model(model: ModelConfig) -> ModelFacts:
    """Read the model's configuration, from the package, a folder, the hub or the preset; no weights.

    Raises ValueError if it cannot be found or is not a Mixture-of-Experts model.
    """
    if model.kind == "random":
        return _facts(
            model, _random_config(model), digest({key: asdict(model)[key] for key in ("id", "sizes", "config", "seed")})
        )
    from lynx_exp.models import BUNDLED, locate

    if model.kind == "bundled" and model.id not in BUNDLED:
        raise ValueError(
            f"model.id={model.id}: not bundled; the package has {', '.join(BUNDLED)}{did_you_mean(model.id, BUNDLED)}"
        )
    if model.kind == "bundled" and not BUNDLED[model.id].is_dir():
        raise ValueError(
            f"model.id={model.id}: missing from this installation; make it with `lynx-prepare train`, or install again"
        )
    try:
        where = locate(model.id)
    except ValueError as error:
        raise ValueError(f"model.id={model.id}: {str(error).partition(': ')[2]}") from error
    folder = Path(where)
    if folder.is_dir():
        path, name = folder / "config.json", folder_digest(folder)
    else:
        path, name = _from_hub(model)
    if not path.is_file():
        raise ValueError(f"model.id={model.id}: has no config.json; give a folder in save_pretrained form, or a hub id")
    facts = _facts(model, _read(model, path), name)
    if model.adapter is not None:
        from lynx_exp.models.adapter import check_adapter

        own = folder_digest(check_adapter(model.adapter))
        label = f"{facts.name} + {Path(model.adapter).name}"
        facts = replace(facts, name=label, digest=digest([facts.digest, own]))
    facts = replace(facts, storage=storage_in(_read(model, path)))
    if model.checkpoint != CheckpointConfig():
        differ = checkpoint_mismatch(model.checkpoint, path.parent, facts.context, facts.name)
        facts = replace(facts, files_differ=differ)
    return replace(facts, mismatch=mismatch(model.shape, path.parent, facts.name)) if model.shape else facts


def _read(model: ModelConfig, path: Path) -> Mapping[str, object]:
    """A configuration, as far as it can be judged without transformers."""
    try:
        config = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"model.id={model.id}: config.json is nested too deeply") from error
    except OSError as error:
        raise ValueError(f"model.id={model.id}: config.json cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"model.id={model.id}: config.json is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"model.id={model.id}: config.json holds a {type(config).__name__}, must hold an object")
    for part in (config, *(config.get(key) for key in NESTED)):
        if not isinstance(part, dict):
            continue
        for field in COUNTS:
            count = part.get(field)
            if count is not None and (type(count) is not int or count < 1):
                raise ValueError(f"model.id={model.id}: config.json: {field}={count!r}: must be a number from 1")
    return config


def _from_hub(model: ModelConfig) -> tuple[Path, str]:
    """(config.json in the hub's cache, identity of the revision)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    revision = f" at revision {model.revision}" if model.revision else ""
    try:
        path = Path(hf_hub_download(model.id, "config.json", revision=model.revision))
    except HFValidationError as error:
        raise ValueError(f"model.id={model.id}: neither a folder nor a hub id (OWNER/NAME)") from error
    except LocalEntryNotFoundError as error:
        raise ModelUnavailable(
            f"model.id={model.id}: no such folder, nor in the local cache of the hub{revision}, "
            "which cannot be reached: its shape is unknown; `lynx-prepare prefetch` with the same arguments fetches it "
            "where there is a network; or give a folder, or model=lynx_tiny, which is in the package"
        ) from error
    except OSError as error:
        reason = first_line(error)
        raise ModelUnavailable(f"model.id={model.id}: not to be had from the hub{revision}: {reason}") from error
    return path, f"{model.id}@{path.parent.name}"


def _random_config(model: ModelConfig) -> dict[str, object]:
    from transformers import CONFIG_MAPPING, AutoConfig

    from lynx_exp.models.family_sizes import random_fields

    if model.id not in CONFIG_MAPPING:
        hint = did_you_mean(model.id, list(CONFIG_MAPPING))
        raise ValueError(
            f"model.id={model.id}: must be a model_type of transformers, such as mixtral, olmoe, qwen3_moe, dbrx{hint}"
        )
    known = AutoConfig.for_model(model.id).to_dict()
    for key in model.config:
        if key not in known:
            raise ValueError(f"model.config.{key}: {model.id} has no such field{did_you_mean(key, known)}")
    try:
        return AutoConfig.for_model(model.id, **random_fields(model.id, model.sizes, model.config)).to_dict()
    except Exception as error:  # each architecture checks its fields in its own way
        raise ValueError(
            f"model.config: {model.id} refuses it: {str(error).strip().splitlines()[-1].strip()}"
        ) from error


def _first(config: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    for part in (config, *(config.get(key) for key in NESTED)):
        if isinstance(part, Mapping):
            found = next((part[name] for name in names if isinstance(part.get(name), int)), None)
            if found is not None:
                return found
    return None


def _facts(model: ModelConfig, config: Mapping[str, object], name: str) -> ModelFacts:
    experts, top_k = _first(config, EXPERTS), _first(config, TOP_K)
    if not experts or experts < 2 or not top_k:
        named = config.get("architectures")
        kind = named[0] if isinstance(named, list) and named else config.get("model_type", "it")
        raise ValueError(
            f"model.id={model.id}: {kind} is not a Mixture-of-Experts model: its configuration names no "
            "experts to select among; give one such as Mixtral, Qwen3-MoE, OLMoE or DBRX"
        )
    if top_k > experts:
        raise ValueError(f"model.id={model.id}: its configuration has {experts} experts, of which it takes {top_k}")
    layers = _first(config, LAYERS) or 0
    context = _first(config, CONTEXT)
    from lynx_exp.models.slotless import why_no_slots

    return ModelFacts(
        name=f"{model.id} (random {name[:6]})" if model.kind == "random" else scrub(model.id),
        digest=name if (own := model_sources()) is None else digest([name, own]),
        num_experts=experts,
        top_k=top_k,
        num_layers=layers,
        context=context,
        model_type=str(config.get("model_type", "")),
        slotless=why_no_slots(config),
    )
