"""The folder for files of a moment, looked at before anything is begun: programs run there, pictures are drawn there,
and libraries that are imported on the way want one."""

from __future__ import annotations

import os
import tempfile


def check_temporary_folder() -> None:
    """ValueError if TMPDIR names a folder that no file can be written to, or if there is no such folder at all. Python
    itself would take another in its place, one that may be too small, without a word."""
    named = os.environ.get("TMPDIR")
    if named:
        try:
            with tempfile.TemporaryFile(dir=named) as file:
                file.write(b"a page")
                file.flush()
        except OSError as error:
            why = error.strerror or str(error)
            raise ValueError(
                f"TMPDIR={named}: no file can be written there ({why}); name another folder, or unset it"
            ) from error
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        tried = str(error.strerror).partition("found in ")[2]
        raise ValueError(f"TMPDIR: none of {tried} can be written to; name a folder that can") from error
