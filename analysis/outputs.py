"""Files that somebody asked for: each is whole or absent, however the process that writes it ends."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lynx_exp.store.files import write_atomically


def write_bytes(path: Path, content: bytes) -> None:
    """`content` into `path`, which is replaced in one step; on any exception it stays as it was. A link to a file stays
    a link, and what is no file (`/dev/stdout`, a pipe) is written into. OSError as the disk gives it."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        if error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_bytes(path, frame.to_csv(index=False).encode())
