"""Text of unknown origin made harmless: what a model wrote, what a policy or a folder is called, what an error said."""

from __future__ import annotations

import json
import unicodedata
from html import escape as escape_html

_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
"""Unicode categories that show nothing, or change how other text shows (right-to-left overrides)."""
_KEPT = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")
"""Layout, and what several scripts and emoji are spelt with."""


def visible(text: str) -> str:
    """`text` with each character that would be invisible, or would rearrange others, spelt out: ⟨U+202E⟩."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelt(letter) if _is_hidden(letter) else letter for letter in text.replace("\r\n", "\n"))


def _is_hidden(letter: str) -> bool:
    return letter not in _KEPT and unicodedata.category(letter) in _HIDDEN


def _spelt(letter: str) -> str:
    return f"⟨U+{ord(letter):04X}⟩"


def escape(text: object) -> str:
    """As content of an HTML element or of a quoted attribute."""
    return escape_html(visible(str(text)), quote=True)


def script_json(value: object) -> str:
    """As content of a `<script type="application/json">`: ASCII, without a character that HTML could take for its own.

    Texts in `value` must be `visible` already. NaN has no place in JSON: ValueError.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
