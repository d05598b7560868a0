"""Who works on a cell: one process at a time, wherever it runs, and never one that is gone.

A claim is a small file, `CLAIM`, that appears in one step and whose age is its heartbeat. Locks of the operating system
are not used: they do not reach across machines on every shared file system. A claim is stale if its process is known
to be dead, or has let its heart stand still for `STALE_S`, measured by the file system's own clock or, whatever
clocks say, by watching.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from time import monotonic, time

CLAIM = "CLAIM"
BEAT_S = 15.0
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links say."""
STALE_S = 120.0
"""Eight heartbeats: a machine that swaps, or a file server that restarts, takes its time."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What a claim says of its process."""

    token: str
    """Its own; two claims never share one."""
    host: str
    boot: str
    """Of the host: process ids count from its start."""
    pid: int
    born: str
    """When the process began, as the kernel counts: ids come again."""
    job: str | None
    """Of the cluster."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" (job {self.job})" if self.job else "")


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _born(pid: int) -> str:
    """The start of a process in the kernel's ticks; empty where that cannot be had, or there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def this_process() -> Holder:
    return Holder(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        born=_born(os.getpid()),
        job=next((os.environ[name] for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID") if name in os.environ), None),
    )


def holder_of(folder: Path) -> Holder | None:
    """Who claims the cell in `folder`, alive or not; None if nobody does, or nobody can tell."""
    try:
        return Holder(**json.loads((folder / CLAIM).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_alive(holder: Holder) -> bool | None:
    """Whether the process of a claim runs; None if it is on another machine."""
    if (holder.host, holder.boot) != (socket.gethostname(), _boot()):
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return _born(holder.pid) == holder.born


def is_held(folder: Path, *, stale_s: float = STALE_S) -> bool:
    """Whether somebody works on the cell, as far as one look can tell."""
    path = folder / CLAIM
    if not path.exists():
        return False
    holder = holder_of(folder)
    alive = None if holder is None else is_alive(holder)
    if alive is not None:
        return alive
    with suppress(OSError):
        return abs(time() - path.stat().st_mtime) <= stale_s
    return False


class Claims:
    """Those of this process. Their hearts beat in a thread of its own, until they are given back or `close`."""

    def __init__(self, *, beat_s: float = BEAT_S, stale_s: float = STALE_S, clock: Callable[[], float] = monotonic):
        self._beat_s, self._stale_s, self._clock = beat_s, stale_s, clock
        self._held: dict[Path, str] = {}
        self._seen: dict[Path, tuple[str, int, float]] = {}
        """Claims of others: their token, last heartbeat, and when it was first seen so."""
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, folder: Path) -> bool:
        """Claim the cell; False if somebody else has it. The folder is made."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / CLAIM
        mine = this_process()
        while not self._create(path, mine):
            holder = holder_of(folder)
            if not self._is_stale(path, holder):
                return False
            if not self._remove(path, holder):
                return False
        with self._lock:
            self._held[folder] = mine.token
        self._seen.pop(folder, None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._thread.start()
        return True

    def is_mine(self, folder: Path) -> bool:
        """Whether the claim still stands: a process that slept too long may have lost it."""
        holder = holder_of(folder)
        return holder is not None and holder.token == self._held.get(folder)

    def give_back(self, folder: Path) -> None:
        """Nothing if it is not this process's."""
        if self.is_mine(folder):
            (folder / CLAIM).unlink(missing_ok=True)
        with self._lock:
            self._held.pop(folder, None)

    def close(self) -> None:
        """Give all back."""
        self._stop.set()
        for folder in list(self._held):
            with suppress(OSError):
                self.give_back(folder)

    def beat(self) -> None:
        """One heartbeat of every claim."""
        with self._lock:
            folders = list(self._held)
        for folder in folders:
            with suppress(OSError):
                os.utime(folder / CLAIM)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            self.beat()

    @staticmethod
    def _create(path: Path, holder: Holder) -> bool:
        """In one step, whole: False if there is one."""
        draft = path.with_name(f".{CLAIM}.{holder.token}.tmp")
        try:
            with draft.open("w") as file:
                json.dump(asdict(holder), file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_without_links(path, draft)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _is_stale(self, path: Path, holder: Holder | None) -> bool:
        alive = None if holder is None else is_alive(holder)
        if alive is not None:
            return not alive
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False  # just given back: the next look finds it free
        now, token = self._clock(), holder.token if holder is not None else ""
        known = self._seen.get(path.parent)
        if known is None or known[:2] != (token, beat):
            self._seen[path.parent] = known = (token, beat, now)
        return now - known[2] > self._stale_s or _age(path, beat) > self._stale_s

    @staticmethod
    def _remove(path: Path, holder: Holder | None) -> bool:
        """Put a stale claim out of the way; False if another process was faster. Of several that try at once one
        finds the claim that it has judged; who finds a newer one puts it back."""
        aside = path.with_name(f".{CLAIM}.{secrets.token_hex(8)}.tmp")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return True
        try:
            found = Holder(**json.loads(aside.read_text()))
        except (OSError, ValueError, TypeError):
            found = None
        same = (found is None) == (holder is None) and (found is None or holder is None or found.token == holder.token)
        if not same:
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        return same


def _create_without_links(path: Path, draft: Path) -> bool:
    """For file systems that have no hard links: exclusive, but for a moment empty."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(draft.read_text())
    return True


def _age(path: Path, beat: int) -> float:
    """Seconds since the heartbeat, by the clock that stamped it: a file made now is stamped by the same one."""
    probe = path.with_name(f".{CLAIM}.{secrets.token_hex(8)}.tmp")
    try:
        probe.touch()
        return (probe.stat().st_mtime_ns - beat) / 1e9
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)
