"""How the holder of a claim changes its cell: each change is one rename that the file system refuses once the claim has
been taken over."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from lynx_exp.store.files import json_bytes, parquet_writer, write_atomically

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class ClaimLost(Exception):
    """This process slept so long that another has taken the cell over. Nothing was changed; what follows is the
    other's."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Every method raises ClaimLost, and changes nothing, once the claim is another's; OSError as the disk gives it."""

    folder: Path
    """The cell."""
    claim: Path
    """The claim: a folder inside the cell that bears its token, gone as soon as the claim is another's."""

    def is_valid(self) -> bool:
        return self.claim.is_dir()

    def check(self) -> None:
        """ClaimLost if the claim does not stand. No promise for the next step: that makes its own."""
        if not self.is_valid():
            raise ClaimLost(str(self.folder))

    def write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        """`write(file)` into `path`, which is replaced in one step."""
        with self._fenced():
            write_atomically(path, write, drafts=self.claim)

    def write_text(self, path: Path, text: str) -> None:
        self.write(path, lambda file: file.write(text.encode()))

    def write_json(self, path: Path, value: object) -> None:
        """As `files.write_json`."""
        # before the file is opened: a value that is no JSON leaves nothing behind
        content = json_bytes(value)
        self.write(path, lambda file: file.write(content))

    def write_parquet(self, path: Path, table: pa.Table) -> None:
        self.write(path, parquet_writer(table))

    def make_folder(self, path: Path) -> None:
        """Nothing if it is there."""
        # made inside the claim and moved out: the move fails once the claim is another's, mkdir would not
        made = self._new()
        with self._fenced():
            made.mkdir()
            try:
                os.rename(made, path)
            except OSError as error:
                made.rmdir()
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def move(self, path: Path, to: Path) -> None:
        """Rename within the cell."""
        between = self._new()
        with self._fenced():
            os.rename(path, between)
            os.rename(between, to)

    def remove(self, path: Path) -> None:
        """A file, or a folder with all that it holds; nothing if it is not there."""
        between = self._new()
        with self._fenced():
            try:
                os.rename(path, between)
            except FileNotFoundError:
                self.check()
                return
        # from here on it is no part of the cell: what cannot be deleted goes with the claim
        shutil.rmtree(between, ignore_errors=True) if between.is_dir() else between.unlink(missing_ok=True)

    def _new(self) -> Path:
        return self.claim / f".{secrets.token_hex(8)}.tmp"

    @contextmanager
    def _fenced(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # the same errors come of a cell that somebody deleted, which is another matter
            if error.errno in _GONE and not self.is_valid():
                raise ClaimLost(str(self.folder)) from error
            raise
