"""What an error is called, whoever raised it and however it was wrapped."""

from __future__ import annotations

import errno

import pytest
import torch

from lynx_exp.engine.kv_cache.memory import OutOfMemory
from lynx_exp.engine.requests.argmax import NotANumber
from lynx_exp.store.faults import KINDS, CannotStore, fault_of


def wrapped(inner: BaseException, outer: BaseException) -> BaseException:
    try:
        try:
            raise inner
        except BaseException as error:
            raise outer from error
    except BaseException as error:
        return error


FULL = OSError(errno.ENOSPC, "No space left on device")
ERRORS: dict[str, list[BaseException]] = {
    "oom_device": [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        wrapped(torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory(4, 4)),
    ],
    "oom_host": [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        wrapped(MemoryError(), OutOfMemory(4, 4)),
    ],
    "nan": [NotANumber("request 3: ..."), wrapped(NotANumber("x"), RuntimeError("lane 1"))],
    "disk_full": [FULL, OSError(errno.EDQUOT, "Disk quota exceeded"), wrapped(FULL, ValueError("cannot write"))],
    "io": [OSError(errno.EIO, "Input/output error"), FileNotFoundError(errno.ENOENT, "No such file", "x")],
    "other": [ValueError("x"), AssertionError(), KeyError("y"), OSError("no number")],
}


@pytest.mark.parametrize(("kind", "error"), [(kind, error) for kind, errors in ERRORS.items() for error in errors])
def test_kinds(kind, error):
    fault = fault_of(error, where="NVIDIA H100")
    assert fault.kind == kind and kind in KINDS
    assert fault.json() == {
        "kind": kind,
        "class": type(error).__name__,
        "message": str(error),
        "where": "NVIDIA H100" if kind == "oom_device" else None,
    }


def test_what_is_suppressed_does_not_count():
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("another thing") from None
    except ValueError as error:
        assert fault_of(error).kind == "other"


def test_a_chain_that_bites_its_tail_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert fault_of(first).kind == "other"


def test_a_full_disk_that_was_noticed_is_one():
    assert isinstance(wrapped(FULL, CannotStore("full")), OSError)
    assert fault_of(wrapped(FULL, CannotStore("full"))).kind == "disk_full"
