"""A process that has the verbs of `lynx-results` imported, and forks one whenever it is asked to.

A line of JSON in: `words` of the command, `folder` to work in, and `at`, the number of the event in that folder before
which `signal` is sent, or null. Two lines out: the process id; then `status` as it ended, `out`, `err` and `events`.
Whatever it leaves running is waited for: nothing that it started outlives it.

An event is a step of the file system: a file opened to be written, moved or deleted, a folder made or deleted, a
flush to the disk. A file that would be opened anew when the process is killed is left half written.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # threads of a pool do not survive a fork

from lynx_exp.results.main import main as lynx_results

TORN = b'{"half": '
MOVES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.link": 2, "os.chmod": 2}
"""Audit events, and where each tells the folder that its path is relative to."""
PATIENCE_S = 120
"""For what a process left running; wandb's own notices the end of its parent by looking."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: processes whose parent died become children of this one."""


class Events:
    """Counts, and sends the signal before the one that it is told."""

    def __init__(self, folder: str, at: int | None, number: int) -> None:
        self.names: list[str] = []
        self._folder, self._at, self._signal = folder, at, number

    def start(self) -> None:
        sys.addaudithook(self._hook)
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self._seen("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            real(descriptor)

        os.fsync = fsync

    def _hook(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._seen(name, args[0], args[2])
        elif name in MOVES:
            folder = args[MOVES[name]]
            self._seen(name, args[0] if folder < 0 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), args[0]))

    def _seen(self, name: str, path: Any, flags: int = 0) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        where = os.path.abspath(os.fsdecode(path))
        if not where.startswith(self._folder):
            return
        self.names.append(f"{name} {where.removeprefix(self._folder)}")
        if len(self.names) - 1 != self._at:
            return
        nameless = os.path.isdir(where)  # a temporary file that is opened in a folder (O_TMPFILE) leaves nothing
        if flags & (os.O_TRUNC | os.O_EXCL) and self._signal == signal.SIGKILL and not nameless:
            os.write(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), TORN)
        os.kill(os.getpid(), self._signal)


def run(asked: dict[str, Any], told: int) -> int:
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    sys.argv = ["lynx-results", *asked["words"]]
    events = Events(asked["folder"] + os.sep, asked["at"], asked["signal"])
    events.start()
    code: Any = 0
    try:
        lynx_results(asked["words"])
    except SystemExit as stop:
        code = stop.code
    finally:
        os.write(told, "\n".join(events.names).encode())
    return code


def warm(study: str) -> None:
    """What is imported, and looked up once, by running all verbs once."""
    with tempfile.TemporaryDirectory() as out:
        for words in (
            ("report", study, "--out", f"{out}/page.html"),
            ("figures", study, "--only", "pareto", "--out", out),
            ("export", "--format", "lm-eval", study, "--out", out),
            ("gc", study),
        ):
            with suppress(SystemExit):
                lynx_results(words)


def main() -> None:
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warm(sys.argv[1])
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as told:
            pid = os.fork()
            if pid == 0:
                code = 1
                os.setsid()
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                try:
                    code = run(asked, told.fileno())
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    end(code)
            print(pid, file=answers, flush=True)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            signal.alarm(PATIENCE_S)
            with suppress(ChildProcessError):
                while True:
                    os.wait()
            signal.alarm(0)
            out_text, err_text, names = (_content(file) for file in (out, err, told))
        answer = {"status": status, "out": out_text, "err": err_text, "events": names.splitlines()}
        print(json.dumps(answer), file=answers, flush=True)


def end(code: int) -> None:
    """As a process ends that was not forked: what was registered is called (wandb ends its own process so)."""
    import atexit

    with suppress(BaseException):
        atexit._run_exitfuncs()
    os._exit(code)


def _content(file: Any) -> str:
    file.seek(0)
    return file.read().decode()


class Zygote:
    """The other end: starts that process and asks it."""

    def __init__(self, study: Path) -> None:
        import subprocess

        command = [sys.executable, "-m", "tests.kills.verb_zygote", str(study)]
        root = Path(__file__).parents[2]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=root, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, folder: Path, *words: str, at: int | None = None, number: int = signal.SIGKILL, **more: str) -> int:
        """The process id; `more`: environment."""
        asked = {"words": words, "folder": str(folder), "at": at, "signal": number, "environment": more}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def end(self) -> dict[str, Any]:
        return json.loads(self._line())

    def run(self, folder: Path, *words: str, at: int | None = None, number: int = signal.SIGKILL, **more: str) -> Any:
        self.start(folder, *words, at=at, number=number, **more)
        return self.end()

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    main()
