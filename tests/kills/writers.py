"""Writers as real processes, on the fake engine: `python -m tests.kills.writers WHAT FOLDER ...` prints JSON.

`stops ROUNDS`: three of them a round, two stop themselves (SIGSTOP) before a step of the file system and are woken when
the third has finished everything. `hold` and `try` take one claim. `readonly HOW`: the folder becomes read-only in
mid-run, by `chmod` as a plain user or by a remount.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import chdir
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from lynx_exp.store.claims import CLAIM, Claims, holder_of
from lynx_exp.store.files import read_json, sha256_of
from lynx_exp.store.holders import Holder, is_alive, this_process

STALE_S = 1.0
NOBODY = 65534


def sweep(claims: Claims, told: StringIO, fail: Any = lambda _lanes: None) -> Any:
    """Six cells, in two packs."""
    from rich.console import Console

    from lynx_exp.run.run_cells import run_cells
    from tests.run.fakes import FakeEngine, FakeTask
    from tests.run.lab import POINTS, cell

    def load(name: str, limit: int | None = None, settings: Any = None) -> FakeTask:
        return FakeTask(name, "choice" if name == "choice" else "generate", limit or 5)

    cells = [cell(point, batching=batching) for batching in ("static", "continuous") for point in POINTS[:3]]
    engine = FakeEngine(fail=fail)
    console = Console(file=told, width=200)
    return run_cells(cells, console=console, open_engine=lambda _: engine, load=load, claims=claims, poll_s=0.05)


def there(host: str) -> Holder:
    return replace(this_process(), host=host)


def writer(folder: Path, host: str, stop_at: int | None) -> int:
    """Fork one, as if on a machine of its own; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status, told, steps = 1, StringIO(), 0

    def stopping(real: Any, *args: Any, **more: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*args, **more)

    try:
        for where, name in ((os, "rename"), (os, "replace"), (tempfile, "mkstemp")):
            setattr(where, name, partial(stopping, getattr(where, name)))
        with chdir(folder):
            report = sweep(Claims(beat_s=0.1, stale_s=STALE_S, me=partial(there, host)), told)
        status = int(report.failed > 0)
    except BaseException as error:
        told.write(f"\n{type(error).__name__}: {error}")
    finally:
        (folder / f"{host}.log").write_text(f"{steps} steps\n{told.getvalue()}")
        os._exit(status)


def stops(folder: Path, rounds: int) -> dict[str, Any]:
    rng, tally = random.Random(20261127), Counter[str]()
    for number in range(rounds):
        place = folder / str(number)
        place.mkdir()
        together = number % 4 == 3  # nobody is stopped
        stopped, codes = [], []
        for host, most in (("a", 330), ("b", 250)):
            pid = writer(place, host, None if together else rng.randrange(1, most))
            if together:
                stopped.append(pid)
                continue
            _, status = os.waitpid(pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                stopped.append(pid)
                tally["stopped"] += 1
            else:
                codes.append(os.waitstatus_to_exitcode(status))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(writer(place, "c", None), 0)[1]))
        for pid in stopped[:: rng.choice((1, -1))]:
            os.kill(pid, signal.SIGCONT)
            if rng.random() < 0.5:
                codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                stopped.remove(pid)
        codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in stopped]
        logs = "".join(path.read_text() for path in place.glob("*.log"))
        tally["taken over"] += logs.count("another process has taken it over")
        tally["runs that failed"] += sum(code != 0 for code in codes)
        judge(place, tally)
        if any(codes):
            return {"tally": tally, "logs": logs}
    return {"tally": tally, "rounds": rounds}


def judge(place: Path, tally: Counter[str]) -> None:
    cells = [path.parent for path in place.rglob("cell.json")]
    done = [(cell, read_json(cell / "DONE")) for cell in cells if (cell / "DONE").exists()]
    tally["cells"] += len(cells)
    tally["lost"] += 6 - len(done)
    tally["damaged"] += sum(
        any(sha256_of(cell / name) != digest for name, digest in files["files"].items()) for cell, files in done
    )
    left = [path for path in place.rglob("*") if path.name == CLAIM or path.name == "lanes" or path.suffix == ".tmp"]
    tally["left lying about"] += len(left)


def hold(folder: Path) -> None:
    claims = Claims(beat_s=0.05)
    print(json.dumps({"taken": claims.take(folder), "pid": os.getpid()}), flush=True)
    sys.stdin.readline()
    print(json.dumps({"mine": claims.is_mine(folder)}), flush=True)
    claims.close()


def attempt(folder: Path) -> dict[str, Any]:
    claims, holder = Claims(), holder_of(folder)
    alive = None if holder is None else is_alive(holder)
    taken = claims.take(folder)
    claims.close()
    return {"alive": alive, "taken": taken, "host": holder.host if holder is not None else None}


def readonly(folder: Path, how: str) -> dict[str, Any]:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)

    def chmod(mode: str) -> None:
        for path in sorted(folder.rglob("*"), key=lambda path: len(path.parts), reverse=mode == "ro"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o555 if mode == "ro" else 0o755)

    if how == "remount":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
        turn = remount
    else:
        with tempfile.TemporaryDirectory() as warm, chdir(warm):
            sweep(Claims(), StringIO())  # imports, from folders that the other user may not see
        os.chown(folder, NOBODY, NOBODY)
        os.setuid(NOBODY)
        turn = chmod
    tally, (reader, writer) = Counter[str](), os.pipe()
    with chdir(folder):
        if os.fork() == 0:  # a claim that cannot be given back ends with its process
            try:
                report = sweep(Claims(), StringIO(), lambda lanes: turn("ro") if lanes == 3 else None)
                errors = sorted({str(outcome.error) for outcome in report.outcomes if outcome.error})
                os.write(writer, json.dumps({"failed": report.failed, "errors": errors}).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            found = json.loads(pipe.read() or "{}")
        os.wait()
        turn("rw")
        failed = sweep(Claims(), StringIO()).failed
    judge(folder, tally)
    return found | {"then": failed, "tally": tally}


def main() -> None:
    what, folder, *more = sys.argv[1:]
    if what == "hold":
        hold(Path(folder))
        return
    does = {"stops": lambda: stops(Path(folder), int(more[0])), "try": lambda: attempt(Path(folder))}
    does["readonly"] = lambda: readonly(Path(folder), more[0])
    print(json.dumps(does[what]()))


if __name__ == "__main__":
    main()
