"""What ends a thought in a response: the marker behind which the answer begins, as lm-eval's `think_end_token` has it.

The answer is what follows the last marker, without the white space before it; a response without any is an answer as
a whole. A marker is looked for in the text without special tokens (lm-eval's, given a text), or, where it is made of
special tokens, which that text lacks, among the tokens (lm-eval's, given a number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLOSED, CUT_THOUGHT, NO_THOUGHT = "closed", "cut", "none"
"""What became of a thought: its marker came; the response was over before it did; there was none."""


@dataclass(frozen=True, kw_only=True)
class ThinkEnd:
    """The end of a thought, for one tokenizer."""

    text: str
    ids: tuple[int, ...] = ()
    """Not empty: tokens that are the marker, whatever their text."""
    opened: bool = True
    """Whether a response begins inside a thought. If not, its stop strings count from the beginning."""


class Answer(NamedTuple):
    """A response, taken apart."""

    text: str
    """Of the answer, cut before the stop string, special tokens left out."""
    thought: str | None = None
    """CLOSED, CUT_THOUGHT or NO_THOUGHT; None: nobody asked for thoughts."""
    thought_tokens: int | None = None
    """Up to the marker and with it; all of a thought that was cut."""


def think_end_of(
    tokenizer: PreTrainedTokenizerBase, marker: str, *, opened: bool = True, name: str = "think_end"
) -> ThinkEnd:
    """The marker as this tokenizer spells it: a text, or the number of a token.

    ValueError, naming the field `name`, for one that is no token, or no sequence of tokens.
    """
    if marker.isdigit():  # as lm-eval reads it
        token, last = int(marker), max(tokenizer.get_vocab().values())
        if token > last:
            raise ValueError(f"{name}={marker}: no token of the tokenizer, whose last is {last}")
        return ThinkEnd(text=tokenizer.decode([token]), ids=(token,), opened=opened)
    ids = list(tokenizer.encode(marker, add_special_tokens=False))
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    if not ids or unknown or tokenizer.decode(ids).strip() != marker.strip() or not marker.strip():
        raise ValueError(
            f"{name}={marker!r}: is no sequence of the tokenizer's tokens; give the text that ends a thought in this "
            "model's responses, or the number of its token"
        )
    if special_ids(tokenizer).isdisjoint(ids):
        return ThinkEnd(text=marker, opened=opened)
    return ThinkEnd(text=marker, ids=tuple(ids), opened=opened)


def special_ids(tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Tokens that a text without special tokens lacks: those that were added as such need not have a role."""
    if tokenizer is None:
        return frozenset()
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    own = getattr(tokenizer, "all_special_ids", ())
    return frozenset([*own, *(token for token, about in added.items() if about.special)])


def after_last(tokens: Sequence[int], ids: Sequence[int]) -> int | None:
    """Where the tokens behind the last `ids` among them begin; None: they are not there."""
    size, wanted = len(ids), list(ids)
    starts = range(len(tokens) - size, -1, -1)
    return next((at + size for at in starts if list(tokens[at : at + size]) == wanted), None)
