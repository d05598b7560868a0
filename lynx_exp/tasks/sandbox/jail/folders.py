"""Folders that a program has filled: emptied whatever it did to them."""

from __future__ import annotations

import contextlib
import os
import stat
from itertools import count


def empty(folder: str) -> None:
    """Delete what is in `folder`: locked folders, links, and nesting deeper than any path or stack."""
    numbers = count()
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
                continue
            with contextlib.suppress(OSError):
                os.rmdir(path)
                continue
            os.chmod(path, 0o700)
            for inner in os.listdir(path):  # one level up, so that no path is ever longer than two names
                inner_path = os.path.join(path, inner)
                if stat.S_ISDIR(os.lstat(inner_path).st_mode):
                    with contextlib.suppress(OSError):
                        os.rmdir(inner_path)
                        continue
                    os.chmod(inner_path, 0o700)  # moving a folder writes its `..`
                    os.rename(inner_path, os.path.join(folder, f"{next(numbers)}-{os.getpid()}-moved"))
                else:
                    os.unlink(inner_path)
            os.rmdir(path)
