"""What ended an attempt at a cell, in the few kinds that call for different answers. Knows errors by name, not by
import: reading results needs no torch."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

KINDS: Mapping[str, str] = {
    "oom_device": "the accelerator's memory ran out",
    "oom_host": "this machine's memory ran out",
    "nan": "the model gave logits that are no numbers",
    "load": "the model did not load",
    "disk_full": "the disk, or a quota, is full",
    "io": "a file could not be read or written",
    "lost": "the process ended without a word: killed, or the machine went down",
    "other": "anything else; error.txt has the whole of it",
}
"""Kind -> what it means, for people."""

OUT_OF_MEMORY = ("oom_device", "oom_host")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CannotStore(OSError):
    """The disk is full, or may only be read by now: nothing more can be kept; what is committed is whole. `str()` says
    so in one line."""


def cannot_store(error: BaseException, place: Path) -> CannotStore | None:
    """What to raise for an `error` of a write into `place` if no other write would fare better."""
    if kind_of(error) == "disk_full":
        return CannotStore(f"the disk is full, or a quota is ({place})")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return CannotStore(f"the file system may only be read by now ({place})")
    return None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """As `error` in status.json."""

    kind: str
    """One of `KINDS`."""
    cls: str
    """Name of the exception's class."""
    message: str
    where: str | None = None
    """Of an accelerator whose memory ran out: what it is."""

    def json(self) -> dict[str, object]:
        """With `class`, which Python keeps for itself."""
        fields = asdict(self)
        return {"kind": fields.pop("kind"), "class": fields.pop("cls")} | fields


def fault_of(error: BaseException, *, where: str | None = None) -> Fault:
    """What `error` is. Its cause counts too: libraries wrap what happened."""
    kind = kind_of(error)
    place = where if kind == "oom_device" else None
    return Fault(kind=kind, cls=type(error).__name__, message=str(error), where=place)


def kind_of(error: BaseException) -> str:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        found = _own_kind(link)
        if found is not None:
            return found
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "other"


def _own_kind(error: BaseException) -> str | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        return "disk_full"
    if "NotANumber" in names:
        return "nan"
    if "OutOfMemoryError" in names or "CUDA out of memory" in text or "CUDA error: out of memory" in text:
        return "oom_device"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        return "oom_host"
    if isinstance(error, OSError) and error.errno is not None:
        return "io"
    return None
