"""Folders that a program has filled: emptied whatever it did to them, or given up in good time.

Everything goes by descriptors and one name at a time: no path is too long, no link is followed, no name is made up.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from dataclasses import dataclass, field

OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PATIENCE_S = 5.0
"""Emptying takes about as long as filling did; a folder that takes longer is left for the end of the run."""


class OwnFolder:
    """A folder for one program after the other, in `above`; replaced where it cannot be emptied."""

    def __init__(self, above: str, name: str) -> None:
        self.above, self.name = above, name
        self.make()

    def make(self) -> None:
        """Under a name that no program before can have taken: without a tier's walls it can write beside its folder."""
        self.path = os.path.join(self.above, f"{self.name}-{os.urandom(8).hex()}")
        os.mkdir(self.path)
        self.fd = os.open(self.path, OPEN)
        os.fchmod(self.fd, 0o777)  # whoever the program becomes

    def empty(self) -> bool:
        """Whether it is the same folder still: False if the program's remains are left behind in the old one."""
        try:
            os.fchmod(self.fd, 0o777)
            empty(self.fd, PATIENCE_S)
            if os.path.samestat(os.fstat(self.fd), os.lstat(self.path)):
                return True
        except OSError:
            pass
        os.close(self.fd)
        self.make()
        return False


@dataclass
class Level:
    """A folder on the way down: its name in the one above, what is left to do in it, and what it was."""

    name: str
    identity: tuple[int, int]
    folders: list[str] = field(default_factory=list)


def remove(path: str) -> None:
    """Delete the folder `path` with all that is in it. OSError if that cannot be done."""
    fd = os.open(path, OPEN)
    try:
        empty(fd)
    finally:
        os.close(fd)
    os.rmdir(path)


def empty(fd: int, patience_s: float = math.inf) -> None:
    """Delete what is in the open folder: locked folders, links, nesting deeper than any path, stack or number of
    descriptors. OSError if something stays, TimeoutError (which is one) after `patience_s`."""
    deadline = time.monotonic() + patience_s
    here = os.dup(fd)
    try:
        way = [enter(here, "", deadline)]
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError("a folder takes too long to be emptied")
            level = way[-1]
            if level.folders:
                name = level.folders.pop()
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=here)
                    continue
                os.chmod(name, 0o700, dir_fd=here)  # a folder, as was seen: no link to be followed
                here = step(here, name)
                way.append(enter(here, name, deadline))
            elif len(way) == 1:
                return
            else:
                way.pop()
                here = step(here, "..")
                if identity(here) != way[-1].identity:
                    raise OSError("a folder was moved while it was emptied")
                os.rmdir(level.name, dir_fd=here)
    finally:
        os.close(here)


def enter(fd: int, name: str, deadline: float) -> Level:
    """Delete what is no folder in the open folder; the folders are left to be done."""
    level = Level(name, identity(fd))
    for number, entry in enumerate(os.listdir(fd)):
        if stat.S_ISDIR(os.lstat(entry, dir_fd=fd).st_mode):
            level.folders.append(entry)
        else:
            os.unlink(entry, dir_fd=fd)
        if number % 1000 == 999 and time.monotonic() > deadline:
            raise TimeoutError("a folder takes too long to be emptied")
    return level


def step(fd: int, name: str) -> int:
    """The folder `name` in the open folder, which is closed."""
    there = os.open(name, OPEN, dir_fd=fd)
    os.close(fd)
    return there


def identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
