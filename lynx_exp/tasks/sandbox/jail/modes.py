"""Changes of a file's modes that change nothing: no program may make others, but copying a file makes these."""

from __future__ import annotations

import os
import stat

Path = int | str | bytes | os.PathLike[str] | os.PathLike[bytes]


def allow_no_change() -> None:
    """`os.chmod` to the modes that a file has succeeds without a call of the kernel's, which would be refused."""
    change = os.chmod

    def chmod(path: Path, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        there = os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks).st_mode
        if stat.S_IMODE(there) != stat.S_IMODE(mode):
            change(path, mode, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    chmod.__module__ = change.__module__
    chmod.__doc__ = change.__doc__
    os.chmod = chmod  # type: ignore[assignment]
    for features in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
        if change in features:
            features.add(chmod)
