"""Landlock: which files a process may read or write, no TCP, no abstract sockets, no signals to outsiders.

A process restricts itself, for good. Rules only grant, and reach everything below a path. Older kernels know fewer
rights; the self-test of a tier decides whether those that are there suffice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence

from .kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG = 1
RULE_PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE
OWN_FOLDER = OF_FILES | READ_DIR | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER

NEWEST_FILE_RIGHT = {1: 12, 2: 13, 3: 14, 4: 14, 5: 15}
"""Version of Landlock -> number of the last right over files that it knows."""
TCP_SINCE, SCOPES_SINCE = 4, 6
BIND_AND_CONNECT_TCP = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class RulesetAttributes(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def version() -> int:
    """The version of Landlock in this kernel; 0 if it has none or has it switched off."""
    try:
        return syscall(CREATE_RULESET, None, 0, VERSION_FLAG)
    except OSError:
        return 0


def ruleset(readable: Sequence[str], listable: Sequence[str], own: str | None, devices: Sequence[str]) -> int:
    """A descriptor of rules: read `readable`, list folders below `listable`, do as one likes in `own`.

    Paths that do not exist grant nothing. What is mounted below a path counts as below it, what is mounted on it does
    not. OSError if there is no Landlock.
    """
    known = version()
    handled = (2 << NEWEST_FILE_RIGHT.get(known, 15)) - 1
    attributes = RulesetAttributes(
        handled,
        BIND_AND_CONNECT_TCP if known >= TCP_SINCE else 0,
        ABSTRACT_SOCKETS_AND_SIGNALS if known >= SCOPES_SINCE else 0,
    )
    size = 24 if known >= SCOPES_SINCE else 16 if known >= TCP_SINCE else 8
    rules = syscall(CREATE_RULESET, ctypes.byref(attributes), size, 0)
    grants = [(path, READ_FILE | READ_DIR) for path in readable]
    grants += [(path, READ_DIR) for path in listable]
    grants += [(path, READ_FILE | WRITE_FILE) for path in devices]
    if own is not None:
        grants.append((own, OWN_FOLDER))
    for path, rights in grants:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # what cannot be opened needs no rule
            allow(rules, path, rights & handled)
    return rules


def enforce(rules: int) -> None:
    """Confine this process to `rules`."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)


def allow(rules: int, path: str, rights: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= OF_FILES
        rule = PathBeneath(rights, beneath)
        syscall(ADD_RULE, rules, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(beneath)
