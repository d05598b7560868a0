"""The process behind a claim: what names it, and whether it still runs as far as this machine can tell."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
_OVER = ("Z", "X", "x")
"""States of a process that has ended and that its parent has not asked for yet."""
_MOST_PID = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What a claim says of its process."""

    token: str
    """Its own; two claims never share one."""
    host: str
    boot: str
    """Of the host's kernel: process ids count from its start, and containers with one host name differ in it."""
    pids: str
    """The PID namespace: the same id is another process in another one."""
    pid: int
    born: str
    """When the process began, as the kernel counts: ids come again."""
    job: str | None
    """Of the cluster."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" (job {self.job})" if self.job else "")

    def json(self) -> dict[str, object]:
        return asdict(self)


def holder_from(value: object) -> Holder | None:
    """What a claim holds, as a holder; None for anything that is not one, such as that of another version."""
    if not isinstance(value, Mapping):
        return None
    fields: dict[str, Any] = {name: value.get(name) for name in Holder.__dataclass_fields__}
    pid, job = fields["pid"], fields["job"]
    if not all(isinstance(fields[name], str) for name in ("token", "host", "boot", "pids", "born")):
        return None
    if type(pid) is not int or not 0 < pid <= _MOST_PID or not (job is None or isinstance(job, str)):
        return None
    return Holder(**fields)


def this_process() -> Holder:
    """With a new token."""
    return Holder(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        boot=_boot(),
        pids=_pid_namespace(),
        pid=os.getpid(),
        born=_stat(os.getpid())[1],
        job=next((os.environ[name] for name in _JOB_IDS if name in os.environ), None),
    )


def is_alive(holder: Holder) -> bool | None:
    """Whether the process of a claim runs; None where that cannot be seen from here: another machine, another PID
    namespace, a kernel that does not say which these are, or a process of which it shows nothing."""
    here = (socket.gethostname(), _boot(), _pid_namespace())
    if "" in here or (holder.host, holder.boot, holder.pids) != here:
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    state, born = _stat(holder.pid)
    if not born or not holder.born:
        return None
    return born == holder.born and state not in _OVER


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    """Not remembered: a process may be forked into another one."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """(state, start in the kernel's ticks); empty where they cannot be had, or there is no such process.

    Read by hand: psutil's `create_time` adds the time of boot by the wall clock; whenever somebody sets that clock
    a living holder would look like another process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""
