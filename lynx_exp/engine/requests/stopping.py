"""When a response ends, and what of it is text: as lm-eval's `hf` model has it at batch size 1.

There a stop string is looked for in the text with its special tokens, and the response is the text without them, cut
at the stop strings one after another. Two things differ: lm-eval looks at a few tokens only, and so misses a stop that
is spelt with more tokens than its tokenizer would take; and it goes on where only the text without special tokens shows
one. The response is the same, but decoding ends here where its text ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from lynx_exp.engine.requests.thoughts import CLOSED, CUT_THOUGHT, NO_THOUGHT, Answer, ThinkEnd, after_last, special_ids

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
        self._special = special_ids(tokenizer)
        self._eos = getattr(tokenizer, "eos_token", None)
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

    def hit_thinking(self, tokens: Sequence[int], stop: Sequence[str], end: ThinkEnd, begin: int | None) -> bool:
        """As `hit`, of a response that may think: within a thought only the text of EOS ends it, as in lm-eval's `vllm`
        model. `begin`: where the tokens that hold the last marker begin (`marker`); None: inside a thought."""
        if begin is None:
            return self.hit(tokens, [string for string in stop if string == self._eos])
        # a stop string of the thought, or the white space before the answer, is none of the answer
        if not self.hit(tokens[begin:], stop):
            return False
        texts = (self._answer(tokens[begin:], end, skip) for skip in (False, True))
        return any(string in text for text in texts for string in stop)

    def marker(self, tokens: Sequence[int], end: ThinkEnd) -> int | None:
        """If the last token completed the marker: where tokens begin that hold it. None: it did not."""
        if end.ids:
            at = len(tokens) - len(end.ids)
            return at if at >= 0 and list(tokens[at:]) == list(end.ids) else None
        if not self._may_end(tokens[-1], end.text):
            return None
        at = max(0, len(tokens) - MARGIN - len(end.text.encode()))
        return at if end.text in self._decode(tokens[at:], skip=True) else None

    def answer(self, tokens: Sequence[int], stop: Sequence[str], end: ThinkEnd | None, finish: str | None) -> Answer:
        """The response as text, without its thought and special tokens, cut at each stop string in turn."""
        if self._tokenizer is None:
            return Answer("")
        text = self._decode(tokens, skip=True) if end is None else self._answer(tokens, end, skip=True)
        for string in stop:
            text = text.partition(string)[0] if string else text
        if end is None:
            return Answer(text)
        thought = self._thought_tokens(tokens, end)
        if thought is not None:
            return Answer(text, CLOSED, thought)
        cut = end.opened and finish in ("length", "cut")
        return Answer(text, CUT_THOUGHT if cut else NO_THOUGHT, len(tokens) if cut else 0)

    def _answer(self, tokens: Sequence[int], end: ThinkEnd, skip: bool) -> str:
        """The text behind the last marker, if there is one."""
        if end.ids:
            return self._decode(tokens[after_last(tokens, end.ids) or 0 :], skip).lstrip()
        return self._decode(tokens, skip).split(end.text)[-1].lstrip()

    def _thought_tokens(self, tokens: Sequence[int], end: ThinkEnd) -> int | None:
        """Up to the last marker and with it; None: there is none."""
        if end.ids:
            return after_last(tokens, end.ids)
        times = self._decode(tokens, skip=True).count(end.text)
        if not times:
            return None
        few, many = 0, len(tokens)  # so many do not hold all of them, so many do
        while many - few > 1:
            half = (few + many) // 2
            few, many = (few, half) if self._decode(tokens[:half], skip=True).count(end.text) == times else (half, many)
        return many

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
