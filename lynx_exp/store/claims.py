"""Who works on a cell: one process at a time, wherever it runs, and never one that is gone.

A claim is a folder, `CLAIM/TOKEN`, in which its holder drafts all that it writes. Locks of the operating system are not
used: they do not reach across machines on every shared file system. Everything rests on `rename`:

- to claim is to move a prepared `CLAIM` into the cell: it fails if there is one that is not empty;
- to take over is to move `CLAIM/TOKEN` away: it fails unless that token still holds, so one of several does it, and
  nobody ever takes away a claim other than the one that was judged;
- to change the cell is to move a file out of, or into, `CLAIM/TOKEN` (`Hold`): it fails once the claim is taken over.

So a process that slept, and wakes after another has taken over, can change nothing any more: what it would check and
what it would do are one step of the file system.

This is more than filelock's `SoftFileLease` gives. A lease lets its former holder write on after a takeover, unless the
resource itself checks who writes, and here that check is the very rename that commits; and a lease waits out its full
duration, where the host, boot, PID namespace and start of a process let us take over at once what is known to be dead.

A claim is stale if its process is known to be dead, or has let its heart stand still for `STALE_S`, measured by the
file system's own clock or, whatever clocks say, by watching.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time

from lynx_exp.store.files import read_json
from lynx_exp.store.hold import Hold
from lynx_exp.store.holders import Holder, holder_from, is_alive, this_process

CLAIM = "CLAIM"
HOLDER = "holder.json"
BEAT_S = 15.0
STALE_S = 120.0
"""Eight heartbeats: a machine that swaps, or a file server that restarts, takes its time."""
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What `rename` says of a claim that is there; the last, of one that is a file, as older versions made them."""
_TRIES = 4
"""To take a cell whose claims others move at the same time, until the next poll."""


@dataclass(frozen=True, kw_only=True)
class ClaimOnDisk:
    """A claim as it is found on disk."""

    path: Path
    """CLAIM/TOKEN, whatever its content; of an older version: the file CLAIM."""
    holder: Holder | None
    """None if it does not say."""
    beat: int
    """The last heartbeat, nanoseconds of the file system's clock."""


def read_claim(folder: Path) -> ClaimOnDisk | None:
    """The claim on the cell in `folder`, alive or not; None if there is none."""
    path = folder / CLAIM
    # a claim is a folder in a folder; a file under its name counts as one, so that it can grow stale like any other
    try:
        found = sorted(path.iterdir())
    except NotADirectoryError:
        found = [path]
    except OSError:
        return None
    for entry in found:
        holder_file = entry / HOLDER if entry != path else path
        with suppress(OSError):
            beat = (holder_file if holder_file.exists() else entry).stat().st_mtime_ns
            holder = holder_from(read_json(holder_file))
            return ClaimOnDisk(path=entry, holder=holder, beat=beat)
    return None


def holder_of(folder: Path) -> Holder | None:
    """Who claims the cell in `folder`, alive or not; None if nobody does, or nobody can tell."""
    found = read_claim(folder)
    return found.holder if found is not None else None


def is_held(folder: Path, *, stale_s: float = STALE_S) -> bool:
    """Whether somebody works on the cell, as far as one look can tell."""
    found = read_claim(folder)
    if found is None:
        return False
    # of a process of this machine one knows; of another's only how long its heart has not beaten
    alive = None if found.holder is None else is_alive(found.holder)
    return alive if alive is not None else abs(time() - found.beat / 1e9) <= stale_s


class Claims:
    """Those of this process. Their hearts beat in a thread of its own, until they are given back or `close`."""

    def __init__(
        self,
        *,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
        clock: Callable[[], float] = monotonic,
        me: Callable[[], Holder] = this_process,
    ):
        self._beat_s, self._stale_s, self._clock, self._me = beat_s, stale_s, clock, me
        self._held: dict[Path, Hold] = {}
        self._seen: dict[Path, tuple[Path, int, float]] = {}
        """Claims of others: where, their last heartbeat, and when it was first seen so."""
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, folder: Path) -> bool:
        """Claim the cell; False if somebody else has it. The folder is made."""
        folder.mkdir(parents=True, exist_ok=True)
        # the cheap look first: most cells that are taken are taken by somebody who lives
        if not self._clear(folder):
            return False
        mine = self._me()
        hold = Hold(folder=folder, claim=folder / CLAIM / mine.token)
        # prepared beside the cell and moved in whole: nobody ever sees a claim without its holder
        draft = _temporary_name(folder)
        try:
            _prepare(draft / mine.token, mine)
            if not self._move_in(draft, hold):
                return False
        except FileNotFoundError:
            return False  # the cell was deleted meanwhile
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        with self._lock:
            self._held[folder] = hold
        self._seen.pop(folder, None)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._thread.start()
        return True

    def hold(self, folder: Path) -> Hold:
        """The way to write into a cell that was taken."""
        return self._held[folder]

    def is_mine(self, folder: Path) -> bool:
        """Whether the claim still stands: a process that slept too long may have lost it."""
        return folder in self._held and self._held[folder].is_valid()

    def give_back(self, folder: Path) -> None:
        """Nothing if it is not this process's. A claim that cannot be moved, as on a disk that became read-only, is
        left to grow stale."""
        hold = self._held.get(folder)
        if hold is None:
            return
        with suppress(OSError):
            _set_aside(hold.claim)
        with suppress(OSError):
            (folder / CLAIM).rmdir()  # fails if it is the next one's by now
        with self._lock:  # last: what Ctrl-C cuts short, `close` does
            self._held.pop(folder, None)

    def close(self) -> None:
        """Give all back."""
        self._stop.set()
        for folder in list(self._held):
            self.give_back(folder)

    def beat(self) -> None:
        """One heartbeat of every claim that still stands: another's has another path."""
        # a copy: a slow file server must not keep `take` and `give_back` waiting
        with self._lock:
            holds = list(self._held.values())
        for hold in holds:
            with suppress(OSError):
                os.utime(hold.claim / HOLDER)

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            self.beat()

    def _move_in(self, draft: Path, hold: Hold) -> bool:
        """False if another claim stands, or others are moving theirs."""
        # a rename onto a folder that is not empty fails: of many that try at once exactly one succeeds
        for _ in range(_TRIES):
            try:
                os.rename(draft, hold.folder / CLAIM)
                return True
            except FileNotFoundError:
                if hold.is_valid():  # a file server did it, and was asked again because its answer was lost
                    return True
                raise
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            if not self._clear(hold.folder):
                return False
        return False

    def _clear(self, folder: Path) -> bool:
        """Put a stale claim out of the way. False if one stands that is not stale."""
        found = read_claim(folder)
        if found is None:
            return True
        if not self._is_stale(folder, found):
            return False
        with suppress(FileNotFoundError, IsADirectoryError):  # another process was faster
            if found.path.name == CLAIM:
                found.path.unlink()  # no folder, which the next claim would be
            else:
                _set_aside(found.path)
        return True

    def _is_stale(self, folder: Path, found: ClaimOnDisk) -> bool:
        alive = None if found.holder is None else is_alive(found.holder)
        if alive is not None:
            return not alive
        now = self._clock()
        # clocks of two machines may differ: what counts is that the heartbeat did not move while we watched
        known = self._seen.get(folder)
        if known is None or known[:2] != (found.path, found.beat):
            self._seen[folder] = known = (found.path, found.beat, now)
        return now - known[2] > self._stale_s or _age(folder, found.beat) > self._stale_s


def sweep_drafts(folder: Path) -> None:
    """Remove what killed processes left beside the claim: claims in the making, and those that were being removed.
    What may be a living process's is left until it is old."""
    for path in folder.glob(f".{CLAIM}.*.tmp"):
        holder_file = next(iter([*path.glob(f"*/{HOLDER}"), *path.glob(HOLDER)]), None)
        holder = holder_from(read_json(holder_file)) if holder_file is not None else None
        # a holder of another machine cannot be asked whether it lives: then age decides
        with suppress(OSError):
            gone = is_alive(holder) is False if holder is not None else False
            if gone or _age(folder, path.stat().st_mtime_ns) > STALE_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prepare(claim: Path, holder: Holder) -> None:
    claim.mkdir(parents=True)
    with (claim / HOLDER).open("w") as file:
        json.dump(holder.json(), file)
        file.flush()
        os.fsync(file.fileno())


def _set_aside(claim: Path) -> None:
    """End a claim in one step; FileNotFoundError if it is ended already."""
    # renamed, not deleted piece by piece: half a claim would look like one without a holder
    aside = _temporary_name(claim.parent.parent)
    os.rename(claim, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _temporary_name(folder: Path) -> Path:
    return folder / f".{CLAIM}.{secrets.token_hex(8)}.tmp"


def _age(folder: Path, beat: int) -> float:
    """Seconds since the heartbeat, by the clock that stamped it: a file made now is stamped by the same one."""
    probe = _temporary_name(folder)
    try:
        probe.touch()
        return (probe.stat().st_mtime_ns - beat) / 1e9
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
