"""Whether a file can be written, before the work whose result it is to hold."""

from __future__ import annotations

from os.path import lexists
from pathlib import Path
from tempfile import TemporaryFile


def check_writable(folder: Path, who: str) -> None:
    """ValueError, in one line that begins with `who` asks, where nothing can be written in the folder, which need not
    be there yet. It leaves nothing behind."""
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if lexists(place))
    if not above.is_dir():
        raise ValueError(f"{who}: {above} is a file or leads nowhere, where a folder is needed; move it")
    try:
        with TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ValueError(f"{who}: {above}: cannot be written to: {error.strerror or error}") from error
