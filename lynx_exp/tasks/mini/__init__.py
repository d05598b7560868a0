"""The four mini tasks: same shapes as GSM8K, HumanEval, TruthfulQA and WMT16, small enough for the bundled model.

Generators draw training items; the held-out items of every task are fixed by seed and stand as JSONL files beside the
lm-eval task definitions. A mini score is never the score of the benchmark that it imitates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from random import Random

from lynx_exp.tasks.mini import gsm8k, humaneval, truthfulqa, wmt16
from lynx_exp.tasks.mini.item import Item

GENERATORS: dict[str, Callable[[Random], Item]] = {
    "mini_gsm8k": gsm8k.sample,
    "mini_humaneval": humaneval.sample,
    "mini_truthfulqa": truthfulqa.sample,
    "mini_wmt16": wmt16.sample,
}
HELD_OUT_SEED = 99991
HELD_OUT_ITEMS = 400


def held_out(task: str) -> list[Item]:
    """The test items of one mini task, always the same."""
    rng = Random(f"{HELD_OUT_SEED}-{task}")
    if task == "mini_truthfulqa":
        return truthfulqa.held_out(rng)[:HELD_OUT_ITEMS]
    items: dict[str, Item] = {}
    while len(items) < HELD_OUT_ITEMS:
        item = GENERATORS[task](rng)
        items.setdefault(item.prompt, item)
    if task == "mini_humaneval":
        return [humaneval.with_test(item, rng) for item in items.values()]
    return list(items.values())


@cache
def _held_out_prompts(task: str) -> frozenset[str]:
    return frozenset(item.prompt for item in held_out(task))


def training_items(task: str, seed: int | str) -> Iterator[Item]:
    """An endless stream of training items, none of whose prompts is a held-out one."""
    rng = Random(f"{seed}-{task}")
    while True:
        item = GENERATORS[task](rng)
        if item.prompt not in _held_out_prompts(task):
            yield item
