"""When a response ends, and what of it is text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase


class Stopper:
    """EOS and stop strings of one model and tokeniser."""

    def __init__(self, config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
        configured = config.eos_token_id if config else None
        ids = configured if isinstance(configured, list) else [configured]
        if tokenizer is not None:
            ids = [*ids, tokenizer.eos_token_id]
        self.eos_ids = frozenset(i for i in ids if i is not None)
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def hit(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last token completed a stop string.

        Decoding every row at every step would cost more than a small model's step, so the text is decoded only if the
        last token's own piece holds the last character of a stop string (always, where that character is not ASCII).
        """
        if not stop:
            return False
        piece = self._piece(tokens[-1])
        if not any(s[-1] in piece or not s[-1].isascii() for s in stop):
            return False
        tail = self._decode(tokens[-(max(map(len, stop)) + 1) :])
        return any(s in tail for s in stop)

    def text(self, tokens: Sequence[int], stop: Sequence[str]) -> str:
        """The response as text, up to the first stop string."""
        if self._tokenizer is None:
            return ""
        text = self._decode(tokens)
        return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._decode([token])
        return self._pieces[token]

    def _decode(self, tokens: Sequence[int]) -> str:
        assert self._tokenizer is not None, "stop strings need a tokenizer"
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)
