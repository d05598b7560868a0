"""Files of the user's cache: what was worked out once, and can be again."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """Ours; for a user without a home one that neither is nor can be made."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lynx_exp"
    except RuntimeError:
        return Path(os.devnull) / "lynx_exp"


def write_atomically(path: Path, text: str) -> None:
    """Whole or not at all; a home that cannot be written to costs the time again."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
