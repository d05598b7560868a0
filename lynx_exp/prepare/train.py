"""Train the bundled MoE (or one like it) on the mini tasks: AdamW, cosine schedule, load-balancing loss, resumable.

R rows, N positions, T tokens (rows times positions), E experts, K top-k.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from lynx_exp.prepare.corpus import Batch, batches, train_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A Mixtral to train. Defaults are the recipe of `lynx_tiny`."""

    hidden_size: int = 128
    """Width of the hidden states."""
    num_layers: int = 4
    """Decoder layers, each with experts."""
    num_experts: int = 16
    """Experts of a layer, E."""
    top_k: int = 2
    """Experts of a token, K."""
    intermediate_size: int = 768
    """Width of one expert. Wide, so that decode is bound by the bytes of the active experts even on a CPU."""
    vocab_size: int = 2048
    """Tokens of the tokenizer, which is trained first."""
    steps: int = 3200
    """Optimiser steps."""
    batch_tokens: int = 2400
    """Positions of one step, padding included."""
    learning_rate: float = 3e-3
    """Learning rate at its peak."""
    final_learning_rate: float = 0.02
    """Share of the peak at the end of the cosine."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises to its peak."""
    weight_decay: float = 0.05
    """Weight decay, of matrices only."""
    balance_weight: float = 0.02
    """Weight of the load-balancing loss E * sum_e f_e p_e / K, averaged over layers (Switch Transformer, eq. 4)."""
    mix: dict[str, float] = field(
        default_factory=lambda: {
            "mini_gsm8k": 0.36,
            "mini_humaneval": 0.22,
            "mini_truthfulqa": 0.11,
            "mini_wmt16": 0.31,
        }
    )
    """Share of each task among the items drawn."""
    seed: int = 3
    """Seed of weights and items."""
    threads: int = 2
    """CPU threads; floating-point sums, and so the exact weights, depend on it."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if self.hidden_size % 32:
            raise ValueError(
                f"hidden_size={self.hidden_size}: must be a multiple of 32, the size of one attention head"
            )
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k={self.top_k}: must lie in 1..num_experts={self.num_experts}")
        for name in ("num_layers", "intermediate_size", "steps", "batch_tokens", "threads", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.vocab_size < 300:
            raise ValueError(f"vocab_size={self.vocab_size}: must be at least 300 (256 bytes and the special tokens)")


def build_model(config: TrainConfig) -> MixtralForCausalLM:
    heads = config.hidden_size // 32
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            num_local_experts=config.num_experts,
            num_experts_per_tok=config.top_k,
            max_position_embeddings=512,
            sliding_window=None,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            experts_implementation="grouped_mm",
        )
    )


def balance_loss(logits_TE: Tensor, experts_TK: Tensor, real_T: Tensor) -> Tensor:
    """E * sum_e f_e p_e / K over real tokens; 1 when experts are used evenly."""
    probs_TE = logits_TE[real_T].float().softmax(-1)
    num_experts = probs_TE.shape[-1]
    load_E = F.one_hot(experts_TK[real_T], num_experts).sum(1).float().mean(0)
    return num_experts * (load_E * probs_TE.mean(0)).sum() / experts_TK.shape[-1]


class _Routers:
    """Collects what each layer's router emitted in the current forward pass."""

    def __init__(self, model: MixtralForCausalLM) -> None:
        self.outputs: list[tuple[Tensor, Tensor]] = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(lambda _module, _inputs, out: self.outputs.append((out[0], out[2])))

    def balance(self, real_T: Tensor) -> Tensor:
        losses = [balance_loss(logits, experts, real_T) for logits, experts in self.outputs]
        self.outputs.clear()
        return torch.stack(losses).mean()


def _learning_rate(config: TrainConfig, step: int) -> float:
    floor = config.final_learning_rate
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps) * (floor + (1 - floor) * cosine)


def _loss(model: MixtralForCausalLM, routers: _Routers, batch: Batch, balance_weight: float) -> tuple[Tensor, Tensor]:
    """(training loss, cross-entropy per answer token)."""
    hidden = model.model(input_ids=batch.ids_RN, use_cache=False).last_hidden_state
    counted = batch.answer_RN[:, 1:]
    logits = model.lm_head(hidden[:, :-1][counted])
    entropy = F.cross_entropy(logits, batch.ids_RN[:, 1:][counted], reduction="none")
    return entropy.mean() + balance_weight * routers.balance(batch.real_RN.flatten()), entropy.detach()


def _save_atomically(state: dict[str, object], path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(
    config: TrainConfig, out: Path, on_step: Callable[[int, dict[str, float]], None] = lambda step, shown: None
) -> Path:
    """Train to `out` in `save_pretrained` form (bf16 weights, tokenizer, `recipe.json`); continues from
    `out/checkpoint.pt`.

    `on_step(steps done, running losses by task)` is called after every step.
    Raises ValueError if `out` holds a checkpoint of another recipe.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(config.vocab_size, config.seed)
    model = build_model(config).train()
    routers = _Routers(model)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)

    step, tokens, shown = 0, 0, dict.fromkeys(config.mix, float("nan"))
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["config"] != asdict(config):
            raise ValueError(f"{checkpoint}: holds another recipe; delete it, or name another output folder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, tokens, shown = state["step"], state["tokens"], state["shown"]

    for batch in batches(tokenizer, config.mix, config.batch_tokens, config.seed, skip=step):
        if step >= config.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(config, step)
        loss, entropy = _loss(model, routers, batch, config.balance_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, tokens = step + 1, tokens + int(batch.real_RN.sum())

        task_of_token = batch.task_R[:, None].expand_as(batch.answer_RN)[:, 1:][batch.answer_RN[:, 1:]]
        for index, task in enumerate(config.mix):
            mine = entropy[task_of_token == index]
            if len(mine):
                shown[task] = (
                    float(mine.mean()) if math.isnan(shown[task]) else 0.95 * shown[task] + 0.05 * float(mine.mean())
                )
        on_step(step, shown)
        if step % config.checkpoint_every == 0 and step < config.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": asdict(config)}
            _save_atomically(state | {"step": step, "tokens": tokens, "shown": shown}, checkpoint)

    model.config.experts_implementation = None  # chosen where the model is loaded, not where it was trained
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    recipe = asdict(config) | {"tokens": tokens, "final_loss": shown, "torch": torch.__version__}
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return out
