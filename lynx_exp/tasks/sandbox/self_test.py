"""The live self-test of a tier: programs that mean harm, run by the very machinery that they are to test.

Each probe reports from inside what it managed to do; what it must not do outside is looked for outside as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lynx_exp.tasks.sandbox import start_supervisor as launch
from lynx_exp.tasks.sandbox.program import ExecutionError, Program
from lynx_exp.tasks.sandbox.tiers import Tier

HELD = "held"
MEMORY_MIB = 256
TIMEOUT_S = 20.0
"""For probes that end by themselves, however busy the machine."""
OUTLIVING_TIMEOUT_S = 0.3

PROBES = {
    "read outside": """
def f():
    seen = []
    for open_it in (lambda: open(AT["canary"]).read(), lambda: os.listdir(AT["folder"])):
        with contextlib.suppress(OSError):
            seen.append(open_it())
    return f"read {seen}" if seen else "held"
""",
    "write outside": """
def f():
    done = []
    for name, act in {
        "appended": lambda: open(AT["canary"], "a").write("x"),
        "made": lambda: open(AT["folder"] + "/made", "w"),
        "changed modes": lambda: os.chmod(AT["canary"], 0o604),
        "truncated": lambda: os.close(os.open(AT["canary"], os.O_RDONLY | os.O_TRUNC)),
        "deleted": lambda: os.unlink(AT["doomed"]),
    }.items():
        with contextlib.suppress(OSError):
            act()
            done.append(name)
    return ", ".join(done) or "held"
""",
    "tcp": """
def f():
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", AT["tcp"]), 2).sendall(b"x")
        return "connected"
    return "held"
""",
    "udp": """
def f():
    with contextlib.suppress(OSError):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", AT["udp"]))
        return "sent"
    return "held"
""",
    "unix sockets": """
def f():
    done = []
    for address in (AT["path"], "\\0" + AT["abstract"]):
        with contextlib.suppress(OSError):
            socket.socket(socket.AF_UNIX).connect(address)
            done.append("connected")
    return ", ".join(done) or "held"
""",
    "the parent's processes": """
def f():
    done = []
    for name, act in {
        "signalled": lambda: os.kill(AT["parent"], 0),
        "listed": lambda: os.listdir(f"/proc/{AT['parent']}"),
        "read the environment of": lambda: open(f"/proc/{AT['parent']}/environ").read(),
        "changed limits of": lambda: resource.prlimit(AT["parent"], resource.RLIMIT_CORE),
    }.items():
        with contextlib.suppress(OSError):
            act()
            done.append(name)
    return ", ".join(done) or "held"
""",
    "the environment": """
def f():
    seen = dict(os.environ)
    with contextlib.suppress(OSError):
        seen["/proc/self"] = open("/proc/self/environ").read().strip("\\0")
    return f"saw {seen}" if any(value and "=0" not in value for value in seen.values()) else "held"
""",
    "start processes": """
def f():
    with contextlib.suppress(OSError):
        os.fork() or os._exit(0)
        return "forked"
    with contextlib.suppress(OSError):
        os.execv(AT["program"], [AT["program"]])
    return "held"
""",
    "memory": """
def f():
    with contextlib.suppress(MemoryError):
        bytearray(AT["too many bytes"])
        return "allocated"
    return "held"
""",
    "outlive the timeout": """
def f():
    import time
    with contextlib.suppress(OSError):
        os.fork() or os.setsid()
    while True:
        time.sleep(1)
""",
}
HEAD = "import contextlib, json, os, resource, socket\nAT = json.loads({at!r})\n"
TEST = "outcome = f()\nif outcome != 'held': raise type(str(outcome), (Exception,), {})"


@dataclass(kw_only=True)
class Outside:
    """What the probes aim at, in the process of the caller."""

    folder: str
    tcp: socket.socket
    udp: socket.socket
    path: socket.socket
    abstract: socket.socket
    at: dict[str, object] = field(default_factory=dict)

    def reached(self) -> dict[str, str]:
        """Probe -> what arrived here of it, whatever it said itself."""
        found = {}
        folder = Path(self.folder)
        canary = folder / "canary"
        if sorted(os.listdir(folder)) != ["canary", "doomed", "socket"] or canary.read_text() != self.at["secret"]:
            found["write outside"] = "changed files"
        if canary.stat().st_mode & 0o777 != 0o666:
            found["write outside"] = "changed modes"
        listeners = ("tcp", self.tcp), ("udp", self.udp), ("unix sockets", self.path), ("unix sockets", self.abstract)
        for probe, listener in listeners:
            with contextlib.suppress(BlockingIOError):
                listener.recv(1) if probe == "udp" else listener.accept()[0].close()
                found[probe] = "arrived"
        return found


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """Files that anybody may read and write, and listeners, as harmless as they are tempting."""
    with tempfile.TemporaryDirectory(prefix="canary-") as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o777)
        secret, abstract = secrets.token_hex(8), f"canary-{secrets.token_hex(8)}"
        for name in ("canary", "doomed"):
            Path(folder, name).write_text(secret)
            os.chmod(Path(folder, name), 0o666)
        listeners = []
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/socket"),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}"),
        ):
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)
            listener.setblocking(False)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            listeners.append(listener)
        os.chmod(f"{folder}/socket", 0o777)
        at: dict[str, object] = {
            "folder": folder,
            "canary": f"{folder}/canary",
            "doomed": f"{folder}/doomed",
            "secret": secret,
            "tcp": listeners[0].getsockname()[1],
            "udp": listeners[1].getsockname()[1],
            "path": f"{folder}/socket",
            "abstract": abstract,
            "parent": os.getpid(),
            "program": "/usr/bin/env",
            "too many bytes": 2 * MEMORY_MIB * 2**20,
        }
        tcp, udp, path, named = listeners
        yield Outside(folder=folder, tcp=tcp, udp=udp, path=path, abstract=named, at=at)


def self_test(tier: Tier) -> dict[str, str]:
    """Probe -> `held`, or what got through. ExecutionError if the tier cannot be had at all."""
    marker = f"self-test-{secrets.token_hex(8)}"
    with outside() as there:
        told = {key: value for key, value in there.at.items() if key != "secret"}
        head = HEAD.format(at=json.dumps(told))
        programs = [Program(source=head + probe, test=TEST, entry_point=None) for probe in PROBES.values()]
        last = len(programs) - 1
        verdicts = launch.run(
            tier,
            programs,
            timeout_s=TIMEOUT_S,
            memory_mib=MEMORY_MIB,
            workers=2,
            own_timeouts_s={last: OUTLIVING_TIMEOUT_S},
            marker=marker,
        )
        if missing := next((it.reason for it in verdicts if it.not_started), None):
            raise ExecutionError(missing)  # a probe that did not run shows nothing
        results = {
            probe: HELD if verdict.passed else verdict.reason.removeprefix("raised ")
            for probe, verdict in zip(PROBES, verdicts, strict=True)
        }
        if verdicts[last].reason == "timeout":
            left = survivors(marker)
            results["outlive the timeout"] = "processes are left" if left else HELD
            for process in left:  # what the tier could not end
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        return results | there.reached()


def survivors(marker: str) -> list[int]:
    """Processes with `marker` in their command line; those that are dying are given a moment."""
    deadline = time.monotonic() + 0.2
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):  # by hand: the sandbox needs no package but this one
            with contextlib.suppress(OSError):
                if marker.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)
