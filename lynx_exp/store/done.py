"""DONE: the hashes of a finished cell's files, and how big and how old each was, so that looking is cheap.

A file of the size and time on record is taken for the one that was written. Where the time is another (the study was
copied) the file is hashed once, and given the time on record again, where that is allowed.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import cast

from lynx_exp.store.file_types import Done
from lynx_exp.store.files import sha256_of
from lynx_exp.store.reading import Damaged, Missing, one_line, read_value

DONE = "DONE"


def seal(folder: Path, names: Iterable[str]) -> Done:
    """The content of DONE for files that are written."""
    # sizes and times spare readers the hashes of files that nobody touched
    hashes, seen = {}, {}
    for name in names:
        held = (folder / name).stat()
        hashes[name] = sha256_of(folder / name)
        seen[name] = [held.st_size, held.st_mtime_ns]
    return {"files": hashes, "seen": seen, "seen_sha256": _digest(seen)}


def sizes_and_times(done: Done) -> dict[str, list[int]] | None:
    """Name -> size in bytes and time in ns, as on record; None if they are not those that were written. (Of cells from
    before there was a hash of them: as they are.)"""
    seen = done.get("seen", {})
    return seen if done.get("seen_sha256", _digest(seen)) == _digest(seen) and done.keys() <= _KEYS else None


_KEYS = {"files", "seen", "seen_sha256"}


def _digest(seen: dict[str, list[int]]) -> str:
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def read_done(folder: Path) -> Done:
    """Damaged (Missing where there is none) if it is not what the store writes."""
    done = cast(Done, read_value(folder / DONE))
    strange = [name for name in done["files"] if Path(name).name != name]
    if strange:
        raise Damaged(folder / DONE, f"names {strange[0]!r}, which is no file of a cell")
    return done


def is_done(folder: Path) -> bool:
    """DONE is there, and so is every file that it names."""
    try:
        return all((folder / name).is_file() for name in read_done(folder)["files"])
    except (Damaged, OSError):
        return False


def check_sealed(folder: Path, done: Done, allow_changed: Collection[str] = ()) -> None:
    """Damaged if a file is not the one that DONE names, but for those in `allow_changed`."""
    seen = sizes_and_times(done) or {}
    for name, digest in done["files"].items():
        path = folder / name
        try:
            held = path.stat()
        except FileNotFoundError as error:
            raise Missing(path, "is missing, and DONE names it") from error
        except OSError as error:
            raise Damaged(path, f"cannot be read ({error.strerror or error})") from error
        if not stat.S_ISREG(held.st_mode):
            raise Damaged(path, "is not a file")
        # unchanged size and time: as sealed, which thousands of cells are read by
        if name in allow_changed or [held.st_size, held.st_mtime_ns] == seen.get(name):
            continue
        try:
            same = sha256_of(path) == digest
        except OSError as error:
            raise Damaged(path, one_line(f"cannot be read ({error.strerror or error})")) from error
        if not same:
            raise Damaged(path, "is not the file that DONE names: changed or damaged since the cell was finished")
        # a copy has other times but the same bytes: the next reader is spared the hash
        _give_back_time(path, held, seen.get(name))


def _give_back_time(path: Path, held: os.stat_result, seen: list[int] | None) -> None:
    if seen is not None and len(seen) == 2 and seen[0] == held.st_size:
        with suppress(OSError, OverflowError):
            os.utime(path, ns=(held.st_atime_ns, seen[1]))
