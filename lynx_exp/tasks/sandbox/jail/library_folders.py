"""The folders that programs import from, for the user whom root's programs become.

That user may be unable to walk to them: a virtual environment in a folder that root alone may enter. A descriptor leads
there past whatever lies above: `/proc/self/fd/32/numpy` asks for the rights of that folder and of what is in it, not of
the folders above. So each such folder is opened while the process is root's still, and imported from by that name.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence

from .confine import FIRST_FOLDER_FD, Plan, drop_privileges

BY_DESCRIPTOR = "/proc/self/fd"


def is_open(folder: str) -> bool:
    """Whether others may enter `folder`, and all folders above it."""
    path = os.path.realpath(folder)
    while os.stat(path).st_mode & stat.S_IXOTH:
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False


def hold_folders(plan: Plan) -> list[str]:
    """Have Python import by descriptor from folders that are not open to all, here and in all that is forked.

    Returns the libraries of `plan.unmasked`, as they are reached then.
    """
    there = [path for path in [*sys.path, *plan.library_path] if os.path.isdir(path)]
    shut = [path for path in dict.fromkeys(there) if not is_open(path)]
    outermost = [path for path in shut if not any(path.startswith(f"{other}/") for other in shut)]
    if not outermost or not os.path.isdir(BY_DESCRIPTOR):
        return plan.unmasked
    names = {}
    for number, path in enumerate(outermost, FIRST_FOLDER_FD):
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        os.dup2(fd, number, inheritable=False)
        os.close(fd)
        names[path] = f"{BY_DESCRIPTOR}/{number}"

    def by_descriptor(path: str) -> str:
        above = next((folder for folder in names if f"{path}/".startswith(f"{folder}/")), None)
        return path if above is None else names[above] + path.removeprefix(above)

    plan.folder_fds = len(names)
    plan.library_path = [by_descriptor(path) for path in plan.library_path]
    sys.path[:] = [by_descriptor(path) for path in sys.path]
    for module in list(sys.modules.values()):
        if hasattr(module, "__path__"):  # a package of the standard library that is loaded looks there for its modules
            module.__path__ = [by_descriptor(path) for path in module.__path__]
    return [by_descriptor(path) for path in plan.unmasked]


def check_readable(paths: Sequence[str]) -> None:
    """RuntimeError, naming the first of `paths` that the user whom programs become may not read.

    Tried as that user, in a child: without it each program that imports such a library would fail, and the score would
    be the folder's, not the model's.
    """
    paths = [path for path in paths if os.path.exists(path)]
    listen, tell = os.pipe()
    if (child := os.fork()) == 0:
        try:
            drop_privileges(0)
            os.write(tell, next((path for path in paths if not may_read(path)), "").encode())
        finally:
            os._exit(0)
    os.close(tell)
    with open(listen, "rb") as pipe:
        shut = pipe.read().decode()
    os.waitpid(child, 0)
    if shut:
        raise RuntimeError(
            f"{os.path.realpath(shut)}: programs of root run as another user, who may not read this: "
            "let others read Python's folders (chmod -R o+rX), or run as an ordinary user"
        )


def may_read(path: str) -> bool:
    if not os.path.isdir(path):
        return os.access(path, os.R_OK)
    init = os.path.join(path, "__init__.py")
    return os.access(path, os.R_OK | os.X_OK) and (not os.path.exists(init) or os.access(init, os.R_OK))
