"""Writes that are whole or absent: a unique temporary name, fsync, `os.replace`, fsync of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

STATE = ".safetensors"
"""Ends the name of where a lane under way stands; that of a committed lane ends in .json."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, drafts: Path | None = None) -> None:
    """`write(file)` into `path`, which is replaced in one step; on any exception `path` stays as it was. The draft lies
    in the folder `drafts`, of the same file system, or beside it."""
    place = path.parent if drafts is None else drafts
    descriptor, temporary = tempfile.mkstemp(dir=place, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            # before the rename: after a power cut the name must not stand for an empty file
            os.fsync(file.fileno())
        # mkstemp makes files for their owner alone; a group reads a study together
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what is told
            Path(temporary).unlink(missing_ok=True)
        raise
    # the new name, too, is durable only once its folder is
    sync(path.parent)


def file_name(name: str) -> str:
    """A name as a part of a file's: as it is where that is plain, else without what a path could be made of, and with a
    piece of its hash, so that two names never become one."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:60] or "task"
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def sync(path: Path) -> None:
    """Make a file's content durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: object) -> None:
    """Strict JSON: NaN and infinities are refused, for other readers would choke on them."""
    content = json_bytes(value)
    write_atomically(path, lambda file: file.write(content))


def json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_parquet(path: Path, table: pa.Table) -> None:
    write_atomically(path, parquet_writer(table))


def parquet_writer(table: pa.Table) -> Callable[[BinaryIO], object]:
    return lambda file: pq.write_table(table, file, compression="zstd")


def read_json(path: Path) -> object:
    """The value, whatever it is, or None if the file is missing or no JSON: for files that are not a study's. Those are
    read by `lynx_exp.store.reading`. A pipe in its place is none, and is not waited for."""
    try:
        content = read_plain(path)
        return None if content is None else json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None


def read_plain(path: Path) -> bytes | None:
    """What a file holds; None for a pipe, a device or a folder, which is not waited for. OSError as the disk gives
    it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # `fdopen` refuses a folder and leaves it open
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
