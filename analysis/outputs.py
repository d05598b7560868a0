"""Files that somebody asked for: each is whole or absent, however the process that writes it ends."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pandas as pd


def write_bytes(path: Path, content: bytes) -> None:
    """`content` into `path`, which is replaced in one step; on any exception it stays as it was. A link to a file stays
    a link, and what is no file (`/dev/stdout`, a pipe) is written into. OSError as the disk gives it."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        with suppress(OSError):  # what went wrong first is what is told
            Path(draft).unlink(missing_ok=True)
        raise


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_bytes(path, frame.to_csv(index=False).encode())
