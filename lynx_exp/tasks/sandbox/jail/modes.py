"""Changes of a file's modes that change nothing: no program may make others, but copying a file makes these."""

from __future__ import annotations

import os
import stat
from typing import Any


def allow_no_change() -> None:
    """`os.chmod` to the modes that a file has succeeds without a call of the kernel's, which would be refused."""
    change = os.chmod

    def chmod(path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        told: dict[str, Any] = {"follow_symlinks": False} if not follow_symlinks else {}
        if dir_fd is not None:
            told["dir_fd"] = dir_fd
        if stat.S_IMODE(os.stat(path, **told).st_mode) != stat.S_IMODE(mode):
            change(path, mode, **told)

    chmod.__module__ = change.__module__
    chmod.__doc__ = change.__doc__
    os.chmod = chmod  # type: ignore[assignment]
    for features in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
        if change in features:
            features.add(chmod)
