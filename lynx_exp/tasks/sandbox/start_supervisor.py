"""Start the supervisor of a run as a tier has it, hand it the programs, wait for its verdicts."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import TypedDict

from lynx_exp.tasks.sandbox import readable_files as files
from lynx_exp.tasks.sandbox.jail.emptied_folders import PATIENCE_S, remove
from lynx_exp.tasks.sandbox.jail.kernel import has_capability
from lynx_exp.tasks.sandbox.jail.namespaces import CAP_SYS_ADMIN, OWN_FOLDER
from lynx_exp.tasks.sandbox.jail.supervisor import FORKS_ENDED
from lynx_exp.tasks.sandbox.program import ExecutionError, Program, Verdict
from lynx_exp.tasks.sandbox.tiers import Tier

START_UP_S = 60.0
"""Grace for interpreter start and bookkeeping, above the time that the programs themselves may take."""

JAIL = Path(__file__).with_name("jail")
INSIDE = "/lynx_exp"
"""Where the code of the jail lies in a jail that bubblewrap made."""
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from jail import supervisor; del sys.path[0]; supervisor.main()"
HASH_SEED = "0"
"""Verdicts repeat: sets and dicts have the same order every time."""


class Answer(TypedDict, total=False):
    """Of a supervisor, if it is one of the right kind."""

    token: str
    verdicts: list[tuple[bool, str]]


def run(
    tier: Tier,
    programs: Sequence[Program],
    *,
    timeout_s: float,
    memory_mib: int,
    workers: int,
    own_timeouts_s: dict[int, float] | None = None,
    marker: str = "",
) -> list[Verdict]:
    """One verdict per program, in order; `own_timeouts_s` by index. `marker` is in the command line of every process.

    ExecutionError if the machinery itself fails, for instance because the tier cannot be had here.
    """
    own_timeouts_s = own_timeouts_s or {}
    entries: list[dict[str, object]] = [asdict(program) for program in programs]
    for index, own in own_timeouts_s.items():
        entries[index]["timeout_s"] = own
    token = secrets.token_hex()
    workers = min(workers, len(programs))
    with work_folder() as folder:
        os.chmod(folder, 0o755)  # programs of root run as another user
        question = message(plan(tier, memory_mib, workers))
        question += message({"token": token, "timeout_s": timeout_s, "programs": entries})
        rounds = ceil(len(programs) / workers)
        patience_s = START_UP_S + (timeout_s * 1.5 + PATIENCE_S) * rounds + sum(own_timeouts_s.values())
        answer = ask(command(tier, marker), question, folder, patience_s)
    if answer.get("token") != token or len(answer.get("verdicts", ())) != len(programs):
        raise ExecutionError("the process that runs programs gave an answer that does not belong to the question")
    return [Verdict(passed=passed, reason=reason) for passed, reason in answer["verdicts"]]


@contextlib.contextmanager
def work_folder() -> Iterator[str]:
    """A folder for a run, removed with whatever programs left in it. ExecutionError if it cannot be made."""
    try:
        folder = tempfile.mkdtemp(prefix="programs-")
    except OSError as error:  # not its cause: the results may lie on another disk, where there is room
        where = os.path.dirname(error.filename or "") or "TMPDIR"
        raise ExecutionError(f"{where}: no folder for programs can be made there ({error.strerror})") from None
    try:
        yield folder
    finally:
        try:
            remove(folder)
        except OSError as error:
            warnings.warn(f"{folder}: files of programs are left there, delete them by hand ({error})", stacklevel=2)


def message(content: dict[str, object]) -> bytes:
    data = json.dumps(content).encode()
    return struct.pack(">I", len(data)) + data


def plan(tier: Tier, memory_mib: int, workers: int) -> dict[str, object]:
    """What `jail.confine.Plan` is made of."""
    parts = asdict(tier)
    del parts["name"]
    granted, listed = (files.readable(), files.site_folders()) if tier.jail != "none" else files.carved()
    return parts | {
        "memory_mib": memory_mib,
        "workers": workers,
        "readable": granted,
        "listable": listed,
        "masked": files.masked(),
        "unmasked": files.libraries(),
        "devices": files.DEVICES,
        "library_path": files.site_folders(),
    }


def command(tier: Tier, marker: str) -> list[str]:
    """-s -S -P and an environment of one entry: as isolated as -I, which would ignore the hash seed."""
    bubblewrapped = tier.jail == "bubblewrap"
    python = [files.interpreter(), "-s", "-S", "-P", "-B", "-c", BOOT, INSIDE if bubblewrapped else str(JAIL.parent)]
    return [*(bubblewrap() if bubblewrapped else []), *python, marker]


def bubblewrap() -> list[str]:
    """The jail by bwrap. Its capabilities hold inside it only; programs give them up."""
    path = shutil.which("bwrap")
    if path is None:
        raise ExecutionError("bwrap is not on the PATH")
    words = [path, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not has_capability(CAP_SYS_ADMIN):
        words.append("--unshare-user")
    words += ["--die-with-parent", "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", HASH_SEED]
    words += ["--cap-add", "ALL"]
    targets = [*files.readable(), *files.libraries(), *files.DEVICES, f"{INSIDE}/jail", f"{OWN_FOLDER}/-"]
    for folder in folders_above(targets):
        words += ["--perms", "0755", "--dir", folder]  # those that bwrap makes unasked are its user's alone
    for source in files.readable():
        link = os.path.islink(source) and source.count("/") == 1  # /lib -> usr/lib
        words += ["--symlink", os.readlink(source), source] if link else ["--ro-bind", source, source]
    for folder in files.masked():
        words += ["--perms", "0755", "--tmpfs", folder]
    for library in files.libraries():
        words += ["--ro-bind", library, library]
    for device in files.DEVICES:
        words += ["--dev-bind-try", device, device]
    words += ["--ro-bind", str(JAIL), f"{INSIDE}/jail", "--remount-ro", "/", "--chdir", "/"]
    return [*words, "--"]


def folders_above(paths: list[str]) -> list[str]:
    """All folders on the way to `paths` that no readable folder brings along, from the top down."""
    above = {str(parent) for path in paths for parent in Path(path).parents} - {"/"}
    return sorted(folder for folder in above if not files.within(folder, files.readable()))


def ask(words: list[str], question: bytes, folder: str, patience_s: float) -> Answer:
    """Run a supervisor in `folder`, hand it the question, wait for its answer. ExecutionError if it has none."""
    supervisor = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONHASHSEED": HASH_SEED},
        cwd=folder,
        start_new_session=True,
    )
    try:
        output, errors = supervisor.communicate(question, timeout=patience_s)
    except subprocess.TimeoutExpired:
        raise ExecutionError(f"the process that runs programs gave no answer in {patience_s:.0f} s") from None
    finally:
        if supervisor.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.communicate()
    if supervisor.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        why = next((line for line in lines if line.startswith(FORKS_ENDED)), lines[-1])
        raise ExecutionError(f"the process that runs programs ended with status {supervisor.returncode}: {why}")
    try:
        return json.loads(output)
    except ValueError:
        raise ExecutionError("the process that runs programs gave an answer that is not JSON") from None
