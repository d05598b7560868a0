"""A model's chat template, as lm-eval's `hf` model applies it to the turns of a prompt."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatTemplate:
    """Two are equal where template and arguments are."""

    digest: str
    tokenizer: PreTrainedTokenizerBase = field(compare=False, repr=False)
    arguments: tuple[tuple[str, object], ...] = ()
    """More of what the template takes, such as enable_thinking."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, arguments: dict[str, object] | None = None) -> ChatTemplate:
        """ValueError if the tokenizer has no template."""
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("task.apply_chat_template=true: the model's tokenizer has no chat template")
        text = json.dumps(tokenizer.chat_template, sort_keys=True)
        given = tuple(sorted((arguments or {}).items()))
        return cls(hashlib.sha256(text.encode()).hexdigest(), tokenizer, given)

    def __call__(self, turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt. A template that refuses system turns gets the others only, as in lm-eval."""
        from jinja2.exceptions import TemplateError

        try:
            return self._apply(turns, add_generation_prompt)
        except TemplateError:
            return self._apply([turn for turn in turns if turn["role"] != "system"], add_generation_prompt)

    def _apply(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **dict(self.arguments),
        )
