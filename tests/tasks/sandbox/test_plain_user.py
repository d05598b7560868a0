"""These tests again as a plain user: what root's programs cannot do for lack of rights, a user's own can try.

In the fast suite a few of each kind; in the slow one all of them, in all tiers.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lynx_exp.tasks.sandbox.jail.kernel import CLONE_NEWNS, call
from lynx_exp.tasks.sandbox.jail.namespaces import MS_BIND, MS_PRIVATE, MS_REC, mount

USER = 65_533
ROOT = Path(__file__).parents[3]
QUICK = "test_representative.py"
FILES = [
    pytest.param(path.name, id=path.stem, marks=() if path.name == QUICK else pytest.mark.slow)
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if path.name != Path(__file__).name
]
NEEDED = (ROOT, Path(sys.prefix), Path(sys.base_prefix).resolve())
FOR_ALL = all(os.stat(path).st_mode & stat.S_IROTH for path in (__file__, pytest.__file__, os.__file__))


def may_pass(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXOTH)


def open_the_way() -> None:
    """In a mount namespace of this process alone: folders that only root may pass show what is needed, and no more.

    Of a needed folder that is itself such a one, a clone's own made by mktemp, all that is in it.
    """
    shut = [folder for path in NEEDED for folder in (*reversed(path.parents), path) if not may_pass(folder)]
    if not shut:
        return
    needed = [entry for path in NEEDED for entry in ([path] if may_pass(path) else sorted(path.iterdir()))]
    call("unshare", CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    held = {path: os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in dict.fromkeys(needed)}
    links = {path: os.readlink(path) for path in held if path.is_symlink()}
    folders = {path for path in held if path.is_dir()} - links.keys()
    for folder in sorted(set(shut)):
        folder.mkdir(parents=True, exist_ok=True)  # another one above it is empty by now
        mount("tmpfs", str(folder), "tmpfs", 0, "mode=0755")
    for path in sorted(held):  # what contains others first
        if path in links:
            path.symlink_to(links[path])
            continue
        (path if path in folders else path.parent).mkdir(parents=True, exist_ok=True)
        if path not in folders:
            path.touch()
        mount(f"/proc/self/fd/{held[path]}", str(path), None, MS_BIND | MS_REC)
    for fd in held.values():
        os.close(fd)


def become_plain() -> None:
    open_the_way()
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after a login: a change of user alone leaves /proc/self to root


@pytest.fixture
def home():
    """Not pytest's own: only its user may enter that."""
    folder = tempfile.mkdtemp(prefix="plain-user-")
    os.chown(folder, USER, USER)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.skipif(os.geteuid() != 0, reason="this is the plain user already")
@pytest.mark.skipif(not FOR_ALL, reason="the files themselves are root's alone (a umask of 077)")
def test_as_a_plain_user(file, home):
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-n", "0", "-rs", "-p", "no:cacheprovider"]
    command += ["-m", "slow or not slow"]  # all tiers: what is slow here is this test itself
    done = subprocess.run(
        [*command, f"--basetemp={home}/pytest", str(Path(__file__).with_name(file))],
        env={
            "HYPOTHESIS_STORAGE_DIRECTORY": home,
            "HOME": home,
            "TMPDIR": home,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        },
        cwd=ROOT,
        preexec_fn=become_plain,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
