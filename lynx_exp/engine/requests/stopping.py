"""When a response ends, and what of it is text: as lm-eval's `hf` model has it at batch size 1.

There a stop string is looked for in the text with its special tokens, and the response is the text without them, cut
at the stop strings one after another. Two things differ: lm-eval looks at a few tokens only, and so misses a stop that
is spelt with more tokens than its tokenizer would take; and it goes on where only the text without special tokens shows
one. The response is the same, but decoding ends here where its text ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

MARGIN = 4
"""Tokens of a tail besides one for each byte of a stop string: its first ones may read otherwise than in their place
(the blank of a first piece, the rest of a character)."""


class Stopper:
    """EOS and stop strings of one model and tokeniser."""

    def __init__(self, config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
        configured = config.eos_token_id if config else None
        ids = configured if isinstance(configured, list) else [configured]
        self.model_eos_ids = frozenset(i for i in ids if i is not None)
        """Those of the model's own configuration."""
        if tokenizer is not None:
            ids = [*ids, tokenizer.eos_token_id]
        self.eos_ids = frozenset(i for i in ids if i is not None)
        self._tokenizer = tokenizer
        self._special = frozenset(_left_out(tokenizer))
        self._ends: dict[int, str | None] = {}

    def hit(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last token completed a stop string.

        Decoding every row at every step would cost more than a small model's step. So a tail of the tokens is decoded,
        and only if the last one could add the last character of a stop string; and all of them, if the tail has one.
        """
        if not any(self._may_end(tokens[-1], string) for string in stop):
            return False
        size = MARGIN + max(len(string.encode()) for string in stop)
        special = not self._special.isdisjoint(tokens)
        tail = self._decode(tokens[-size:])
        if not special and not any(string in tail for string in stop):
            return False
        texts = [self._decode(tokens), *([self._decode(tokens, skip=True)] if special else [])]
        return any(string in text for string in stop for text in texts)

    def text(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The response as text, without special tokens, cut at each stop string in turn."""
        if self._tokenizer is None:
            return ""
        text = self._decode(tokens, skip=True)
        for string in stop:
            text = text.partition(string)[0] if string else text
        return text

    def _may_end(self, token: int, string: str) -> bool:
        """Whether a text may have `string` at its end, or before, only since `token` is there."""
        if token not in self._ends:
            self._ends[token] = self._characters(token)
        characters = self._ends[token]
        return characters is None or string[-1:] in characters

    def _characters(self, token: int) -> str | None:
        """All that the token may add to a text; None: anything, since it is a part of a character."""
        alone, twice = self._decode([token]), self._decode([token, token])  # as a first piece, and after another
        return None if "\ufffd" in twice else alone + twice

    def _decode(self, tokens: Sequence[int], skip: bool = False) -> str:
        assert self._tokenizer is not None, "stop strings need a tokenizer"
        return self._tokenizer.decode(list(tokens), skip_special_tokens=skip)


def _left_out(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Tokens that a text without special tokens lacks: those that were added as such need not have a role."""
    if tokenizer is None:
        return []
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return [*getattr(tokenizer, "all_special_ids", ()), *(token for token, about in added.items() if about.special)]
