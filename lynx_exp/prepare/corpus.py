"""Training text for the bundled model: mini-task items, tokenised and cut into length-bucketed batches.

Everything is a function of (seed, pool number), so training resumes at any batch and repeats from its seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lynx_exp.tasks.mini import GENERATORS, training_items

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
POOL_ITEMS = 3000
"""Items drawn, sorted by length and cut into batches at a time: enough that padding stays small."""


def train_tokenizer(vocab_size: int, seed: int, items_per_task: int = 8000) -> PreTrainedTokenizerFast:
    """A byte-level BPE over mini-task text; it prepends BOS to a prompt, as Mixtral's does."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    texts = (
        i.prompt + i.answer for t in GENERATORS for i in islice(training_items(t, f"tokenizer-{seed}"), items_per_task)
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """R right-padded rows of at most N tokens; causal attention never looks at the padding."""

    ids_RN: Tensor
    real_RN: Tensor
    """True on tokens, False on padding."""
    answer_RN: Tensor
    """True on the tokens that the loss counts: the answer and EOS."""
    task_R: Tensor


def _collate(rows: list[tuple[list[int], int, int]]) -> Batch:
    width = max(len(ids) for ids, _, _ in rows)
    ids_RN = torch.zeros(len(rows), width, dtype=torch.long)
    real_RN = torch.zeros(len(rows), width, dtype=torch.bool)
    answer_RN = torch.zeros_like(real_RN)
    for r, (ids, prompt_tokens, _) in enumerate(rows):
        ids_RN[r, : len(ids)] = torch.tensor(ids)
        real_RN[r, : len(ids)] = True
        answer_RN[r, prompt_tokens : len(ids)] = True
    return Batch(
        ids_RN=ids_RN, real_RN=real_RN, answer_RN=answer_RN, task_R=torch.tensor([task for _, _, task in rows])
    )


def _pool(tokenizer: PreTrainedTokenizerFast, mix: dict[str, float], batch_tokens: int, seed: str) -> list[Batch]:
    rng = Random(seed)
    tasks = list(mix)
    streams = {task: training_items(task, f"{seed}-{task}") for task in tasks}
    drawn = rng.choices(range(len(tasks)), list(mix.values()), k=POOL_ITEMS)
    items = [next(streams[tasks[task]]) for task in drawn]
    prompts = tokenizer([item.prompt for item in items]).input_ids
    answers = tokenizer([item.answer for item in items], add_special_tokens=False).input_ids
    rows = [
        (p + a + [tokenizer.eos_token_id], len(p), task) for p, a, task in zip(prompts, answers, drawn, strict=True)
    ]
    rows.sort(key=lambda row: len(row[0]) + rng.random())

    chunks: list[list[tuple[list[int], int, int]]] = [[]]
    for row in rows:  # ascending length: the newest row is the widest
        if (len(chunks[-1]) + 1) * len(row[0]) > batch_tokens:
            chunks.append([])
        chunks[-1].append(row)
    rng.shuffle(chunks)
    return [_collate(chunk) for chunk in chunks]


def batches(
    tokenizer: PreTrainedTokenizerFast, mix: dict[str, float], batch_tokens: int, seed: int, skip: int = 0
) -> Iterator[Batch]:
    """An endless stream of batches of at most `batch_tokens` positions; `skip` batches are passed over."""
    for number in count():
        pool = _pool(tokenizer, mix, batch_tokens, f"{seed}-{number}")
        if skip >= len(pool):
            skip -= len(pool)
            continue
        yield from pool[skip:]
        skip = 0
