"""A model that thinks before it answers: its chat template's flag, and the marker that its tokenizer knows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lynx_exp.engine.requests.thoughts import ThinkEnd, think_end_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
MARKERS = (
    "</think>",  # DeepSeek, Qwen, GLM, and most others
    "[/THINK]",  # Magistral
    "</seed:think>",  # Seed-OSS
    "<channel|>",  # Gemma 4
    "<|channel|>final<|message|>",  # gpt-oss: the channel of the answer
)
"""Ends of thoughts in families that are known, looked for in this order."""
FLAGS = ("enable_thinking", "thinking")
"""Of chat templates: Qwen's, GLM's and Gemma's; DeepSeek's and Granite's."""


def find_think_end(
    tokenizer: PreTrainedTokenizerBase, marker: str, *, opened: bool, name: str = "task.think_end"
) -> ThinkEnd:
    """What ends a thought; `marker` as `task.think_end` gives it. ValueError, in one line that names the field, where
    there is none, or it is no sequence of the tokenizer's tokens."""
    if marker != AUTO:
        return think_end_of(tokenizer, marker, opened=opened, name=name)
    template, added = _template(tokenizer), tokenizer.get_added_vocab()
    for known in MARKERS:
        if known in added or known in template:
            return think_end_of(tokenizer, known, opened=opened, name=name)
    raise ValueError(
        f"{name}=auto: neither the added tokens nor the chat template of the model's tokenizer has any of "
        f"{', '.join(MARKERS)}; give the text that ends a thought, or null"
    )


def thinking_flag(tokenizer: PreTrainedTokenizerBase, *, asked: str = "task.thinking", whose: str = "the model") -> str:
    """What the chat template calls its switch of thinking. ValueError if it has none; it begins with `asked`, the field
    and its value, and names the model as `whose`."""
    template = _template(tokenizer)
    found = next((flag for flag in FLAGS if re.search(rf"\b{flag}\b", template)), None)
    if found is None:
        hint = "; it takes reasoning_effort, in task.chat_template_args" if "reasoning_effort" in template else ""
        raise ValueError(
            f"{asked}: the chat template of {whose} has no flag for it ({', '.join(FLAGS)}){hint}; leave it out"
        )
    return found


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the chat template, of all where there are several; empty: there is none."""
    given = getattr(tokenizer, "chat_template", None) or ""
    return given if isinstance(given, str) else "\n".join(map(str, given.values()))
