"""Measure what calibrated policies must know of a model: how alike its experts are (sere), how its router's scores fall
off (naee), what each layer loses by running fewer experts (lexi), how much each expert matters (static_mask).

L layers with a router, R sequences of a batch, N positions, T token rows (R times N).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from lynx_exp.config import DTYPES, ModelConfig, at_least, one_of
from lynx_exp.prepare.texts import MINI, read_texts
from lynx_exp.prepare.writable import check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_exp.engine import Engine
    from lynx_exp.routing import Calibration
    from lynx_exp.routing.alignment import Alignment
    from lynx_exp.routing.budgets import Budgets

OnStep = Callable[[int, int], None]
"""Called with (units of work done, units in all); a layer of a batch is one unit."""


@dataclass(kw_only=True)
class CalibrateConfig:
    """What to measure, on what."""

    model: ModelConfig = MISSING
    """As for `lynx-exp`: model=NAME, or model=hub model.id=PATH_OR_HUB_ID."""
    policy: Any = None
    """null: what sere, naee, lexi and static_mask must know. Or, as for `lynx-exp`, a policy with its parameters: its
    alignment, which `policy.weights=affine` takes, or with policy.per_layer=calibrated what each layer costs at each
    budget; batch_size is then the batch that it sees."""
    out: str | None = None
    """The file to write; null is calibrations/MODEL.safetensors, where `calibration=auto` finds it."""
    data: str = MINI
    """mini: freshly generated items of the mini tasks, none of which is ever an evaluation item. Or a file: .jsonl with
    the texts in `text`, else one text a line."""
    sequences: int = 400
    """Texts to read, the first of the file; the default is SERE's."""
    max_length: int = 128
    """Tokens of a text that are read; the default is SERE's."""
    gaussian_tokens: int = 1024
    """Random hidden states on which each layer's loss by fewer experts is measured."""
    batch_size: int = 16
    """Sequences of one forward pass."""
    seed: int = 0
    """Seed of the mini items and the random hidden states."""
    device: str = "auto"
    """Where the model runs, as for `lynx-exp`."""
    dtype: str = "auto"
    """Number format of the weights, as for `lynx-exp`."""
    threads: int | None = None
    """CPU threads; null leaves the default."""

    def __post_init__(self) -> None:
        for name in ("sequences", "max_length", "gaussian_tokens", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("threads", self.threads, 1, optional=True)
        one_of("dtype", self.dtype, DTYPES)

    def file(self) -> Path:
        """Where to write. ValueError for a place that cannot be written to."""
        from lynx_exp.models import calibration_path

        if self.out is not None:
            path = Path(self.out).expanduser()
        elif self.model.kind == "random":
            path = Path("calibrations") / f"random_{self.model.id}.safetensors"
        else:
            path = calibration_path(self.model.id)
        if path.is_dir():
            raise ValueError(f"out={path}: is a folder; name a file in it, such as {path / 'NAME.safetensors'}")
        check_writable(path.parent, f"out={path}")
        return path


def calibrate(config: CalibrateConfig, on_step: OnStep = lambda done, total: None) -> Calibration:
    """Load the model and measure it. Memory: besides the model, one batch, one chunk of all experts' outputs, and 4
    bytes for each token, layer and rank.

    Equal inputs give equal results, as far as the device's sums repeat. ValueError, in one line, for a bad input.
    """
    from lynx_exp.run.model_facts import inspect_model

    texts = read_texts(config.data, config.sequences, config.seed)
    about = inspect_model(config.model)
    config.file()  # refused now rather than when the work is done

    import torch

    from lynx_exp.models import fingerprint
    from lynx_exp.prepare.layer_facts import LayerFacts
    from lynx_exp.prepare.observe import Observed
    from lynx_exp.prepare.single_experts import find_experts
    from lynx_exp.routing import Calibration
    from lynx_exp.routing.calibration import SIMILARITIES

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    engine = _open(config)
    batches = _batches(engine, texts, config)
    experts = find_experts(engine.model, engine.routers)
    facts = [LayerFacts(*pair) for pair in zip(engine.routers, experts, strict=True)]
    observed = Observed(engine.model, engine.routers, experts, facts)
    lengths = [len(part) for part in torch.arange(config.gaussian_tokens).split(config.max_length)]
    total, done = (len(batches) + len(lengths)) * len(facts), count(1)
    observed.read(batches, lambda: on_step(next(done), total))
    observed.read_noise(lengths, config.seed, lambda: on_step(next(done), total))
    similarity = [layer.similarity() for layer in facts]
    return Calibration(
        fingerprint=fingerprint(engine.routers),
        similarity={metric: torch.stack([of_layer[metric] for of_layer in similarity]) for metric in SIMILARITIES},
        ratio=torch.stack([layer.ratio() for layer in facts]),
        divergence=torch.stack([layer.divergence() for layer in facts]),
        saliency=torch.stack([layer.saliency() for layer in facts]),
        largest=torch.stack([layer.largest() for layer in facts]),
        provenance=_provenance(config, engine, about.name, about.digest, texts, facts[0].tokens),
    )


def measure_policy(config: CalibrateConfig, on_step: OnStep = lambda done, total: None) -> Alignment | Budgets:
    """Load the model and measure `config.policy` on it: its budgets by layer if it asks for those, else its alignment.
    Equal inputs give equal results, as far as the device's sums
    repeat. ValueError, in one line, for a bad input."""
    from lynx_exp.models import find_calibration
    from lynx_exp.routing import build_policy
    from lynx_exp.routing.alignment import FOLDER
    from lynx_exp.run.model_facts import inspect_model

    given = {key: value for key, value in config.policy.items() if key not in ("name", "match_active")}
    if config.out is not None:
        raise ValueError(f"out={config.out}: what is measured of a policy lies in calibrations/; leave out=null")
    policy = build_policy(config.policy["name"], **given)
    check_writable(FOLDER, f"policy={policy.name}")  # refused now rather than when the work is done
    texts = read_texts(config.data, config.sequences, config.seed)
    about = inspect_model(config.model)

    import torch

    from lynx_exp.models import fingerprint
    from lynx_exp.prepare.align import measure
    from lynx_exp.prepare.measure_budgets import measure_budgets
    from lynx_exp.prepare.single_experts import find_experts

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    engine = _open(config)
    batches = _batches(engine, texts, config)
    calibration = None if config.model.kind == "random" else find_calibration(config.model.id)
    said = _provenance(config, engine, about.name, about.digest, texts, sum(int(real.sum()) for _, real in batches))
    if policy.per_layer is not None:
        on_model = fingerprint(engine.routers)
        about_it = said | {"policy": policy.label}
        return measure_budgets(engine.model, engine.routers, policy, batches, on_model, about_it, on_step, calibration)
    total, done = len(batches) * len(engine.routers), count(1)
    return measure(
        engine.model,
        engine.routers,
        find_experts(engine.model, engine.routers),
        policy,
        batches,
        said["data_sha256"],
        said | {"policy": policy.label},
        lambda: on_step(next(done), total),
        calibration,
    )


def _open(config: CalibrateConfig) -> Engine:
    from lynx_exp.engine import Engine
    from lynx_exp.models.family_sizes import random_fields

    model = config.model
    if model.kind == "random":
        return Engine.from_config(
            model.id,
            random_fields(model.id, model.sizes, model.config),
            seed=model.seed,
            dtype=config.dtype,
            device=config.device,
            experts_implementation=model.experts_implementation,
        )
    return Engine.from_pretrained(
        model.id,
        revision=model.revision,
        dtype=config.dtype,
        device=config.device,
        experts_implementation=model.experts_implementation,
        trust_remote_code=model.trust_remote_code,
        allow_partial=model.allow_partial,
    )


def _batches(engine: Engine, texts: Sequence[str], config: CalibrateConfig) -> list[tuple[Tensor, Tensor]]:
    """(ids `[R, N]`, which of them are real) of each batch, right-padded: causal attention never looks ahead."""
    import torch

    limit = getattr(engine.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and config.max_length > limit:
        raise ValueError(f"max_length={config.max_length}: this model has {limit} positions; give at most that")
    if engine.tokenizer is not None:
        rows = engine.tokenizer(list(texts), truncation=True, max_length=config.max_length).input_ids
    else:  # random weights: bytes are as good as any
        vocabulary = engine.model.get_input_embeddings().num_embeddings
        rows = [[byte % vocabulary for byte in text.encode()][: config.max_length] for text in texts]
    batches = []
    for begin in range(0, len(rows), config.batch_size):
        batch = rows[begin : begin + config.batch_size]
        width = max(map(len, batch))
        ids_RN = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch], device=engine.device)
        real_RN = torch.tensor([[n < len(ids) for n in range(width)] for ids in batch], device=engine.device)
        batches.append((ids_RN, real_RN))
    return batches


def _provenance(
    config: CalibrateConfig, engine: Engine, name: str, digest: str, texts: Sequence[str], tokens: int
) -> dict[str, str]:
    """What the tables were measured on; nothing of the place or the time."""
    import torch
    import transformers

    import lynx_exp

    return {
        "model": Path(name).name if Path(config.model.id).expanduser().is_dir() else name,
        "model_digest": digest,
        "data": Path(config.data).name,
        "data_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "sequences": str(len(texts)),
        "max_length": str(config.max_length),
        "tokens": str(tokens),
        "gaussian_tokens": str(config.gaussian_tokens),
        "batch_size": str(config.batch_size),
        "seed": str(config.seed),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": engine.device.type,
        "lynx_exp": lynx_exp.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
