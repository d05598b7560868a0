"""The pieces of the jail that can be tried alone."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from lynx_exp.tasks.sandbox import readable_files as files
from lynx_exp.tasks.sandbox.jail import emptied_folders as folders
from lynx_exp.tasks.sandbox.jail import seccomp
from lynx_exp.tasks.sandbox.jail.syscalls import ARCHITECTURES, HARMLESS, JUDGED, numbers

HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_numbers_are_those_of_the_headers(machine):
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"no {header}")
    found = {
        name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", header.read_text())
    }
    found.setdefault("newfstatat", found.get("fstatat", 0))
    for table in (HARMLESS, JUDGED):
        assert numbers(table, machine) == {name: found[name] for name in numbers(table, machine)}


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_is_judged_is_not_let_through_before(machine):
    assert not set(numbers(HARMLESS, machine).values()) & set(numbers(JUDGED, machine).values())


def evaluate(code: bytes, number: int, arguments: tuple[int, ...] = (), architecture: int = 0xC000_003E) -> int:
    """What a filter says to a call: the few instructions that it uses, by their definition."""
    data = struct.pack("iIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    at = accumulator = 0
    while True:
        kind, if_true, if_false, operand = struct.unpack_from("HBBI", code, 8 * at)
        at += 1
        if kind == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("I", data, operand)
        elif kind == seccomp.AND:
            accumulator &= operand
        elif kind == seccomp.RETURN:
            return operand
        else:
            holds = {
                seccomp.JUMP_EQUAL: accumulator == operand,
                seccomp.JUMP_ABOVE: accumulator > operand,
                seccomp.JUMP_ANY_BIT: bool(accumulator & operand),
            }[kind]
            at += if_true if holds else if_false


@pytest.mark.parametrize(
    ("call", "arguments", "allowed"),
    [
        ("kill", (77, 9), True),
        ("kill", (78, 9), False),
        ("kill", (2**32 - 1, 9), False),
        ("tgkill", (77, 80, 9), True),
        ("tgkill", (1, 1, 9), False),
        ("clone", (0x3D0F00,), True),
        ("clone", (17,), False),
        ("openat", (0, 0, 0), True),
        ("openat", (0, 0, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), True),
        ("openat", (0, 0, os.O_RDWR | os.O_TRUNC), True),
        ("openat", (0, 0, os.O_RDONLY | os.O_TRUNC), False),
        ("openat", (0, 0, 3 | os.O_TRUNC), False),
        ("socketpair", (1, 1 | 0o2000000), True),
        ("socketpair", (1, 2), False),
        ("socketpair", (2, 1), False),
        ("sendto", (3, 0, 0, 0, 0), True),
        ("sendto", (3, 0, 0, 0, 1), False),
        ("sendto", (3, 0, 0, 0, 1 << 32), False),
        ("fcntl", (3, 4), True),
        ("fcntl", (3, 1036), False),
        ("renameat2", (0, 0, 0, 0, 1), True),
        ("renameat2", (0, 0, 0, 0, 4), False),
        ("clone", (0x10010000,), False),
        ("fcntl", (3, 8), False),
        ("fcntl", (3, 10), False),
        ("fcntl", (3, 1026), False),
        ("ioctl", (0, 0x5401), True),
        ("ioctl", (0, 0x5412), False),
        ("prctl", (15,), True),
        ("prctl", (1,), False),
        ("prlimit64", (0,), True),
        ("prlimit64", (77,), True),
        ("prlimit64", (78,), False),
    ],
)
@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_filter(machine, call, arguments, allowed):
    code = seccomp.Filter(machine).for_process(77)
    architecture = ARCHITECTURES[machine][1]
    assert (evaluate(code, numbers(JUDGED, machine)[call], arguments, architecture) == seccomp.ALLOW) is allowed


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_number(machine):
    """Nothing is allowed but what is in the tables, and no other architecture lives."""
    code = seccomp.Filter(machine).for_process(77)
    _, architecture = ARCHITECTURES[machine]
    known = set(numbers(HARMLESS, machine).values()) | set(numbers(JUDGED, machine).values())
    for number in range(1000):
        verdict = evaluate(code, number, architecture=architecture)
        assert verdict == seccomp.ALLOW or verdict & 0xFFFF0000 == seccomp.ERROR
        assert verdict != seccomp.ALLOW or number in known
        assert evaluate(code, number, architecture=0x4000_0003) == seccomp.KILL
        assert evaluate(code, 0x4000_0000 + number, architecture=architecture) == seccomp.KILL


REFUSED = """
chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utime utimes futimesat utimensat setxattr lsetxattr
fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat file_setattr truncate mknod mknodat
name_to_handle_at open_by_handle_at quotactl quotactl_fd mount umount2 mount_setattr move_mount open_tree
open_tree_attr fsopen fsconfig fsmount fspick pivot_root chroot swapon swapoff acct add_key request_key keyctl
io_uring_setup io_uring_enter io_uring_register io_setup bpf userfaultfd perf_event_open ptrace process_vm_readv
process_vm_writev process_madvise process_mrelease kcmp pidfd_open pidfd_getfd pidfd_send_signal memfd_create
memfd_secret execve execveat unshare setns seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
fanotify_init fanotify_mark inotify_init inotify_init1 inotify_add_watch shmget shmat semget msgget mq_open mq_unlink
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset setpgid setsid setpriority
sched_setaffinity sched_setattr sched_setscheduler sched_setparam ioprio_set setrlimit personality mbind set_mempolicy
migrate_pages move_pages mlockall socket connect bind listen accept accept4 sendmsg sendmmsg rt_sigqueueinfo
rt_tgsigqueueinfo tkill init_module finit_module delete_module kexec_load reboot settimeofday clock_settime adjtimex
sethostname setdomainname syslog lookup_dcookie vmsplice splice tee flock fadvise64 modify_ldt iopl ioperm uselib
ustat vhangup openat2 clone3 fork vfork
"""


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_changes_files_or_reaches_out_is_refused(machine):
    """Whatever the arguments: by name, as the kernel's headers know it."""
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"no {header}")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", header.read_text()))
    code = seccomp.Filter(machine).for_process(77)
    known = [name for name in REFUSED.split() if name in found]
    assert len(known) > 100
    for name in known:
        for arguments in ((0,) * 6, (1,) * 6, (2**64 - 1,) * 6, (77,) * 6):
            verdict = evaluate(code, int(found[name]), arguments, architecture=ARCHITECTURES[machine][1])
            assert verdict & 0xFFFF0000 == seccomp.ERROR, name


@pytest.mark.parametrize("call", ["fcntl", "ioctl"])
def test_requests_that_are_let_through(call):
    """The allowlists are all that passes of what has no end."""
    code = seccomp.Filter("x86_64").for_process(77)
    [number] = [numbers(JUDGED, "x86_64")[call]]
    good = {"fcntl": seccomp.DESCRIPTOR_REQUESTS, "ioctl": seccomp.TERMINAL_QUESTIONS}[call]
    passed = {request for request in range(0x1_0000) if evaluate(code, number, (0, request)) == seccomp.ALLOW}
    assert passed == set(good)


def test_a_folder_that_cannot_be_emptied_is_replaced(tmp_path, monkeypatch):
    own = folders.OwnFolder(str(tmp_path), "0")
    first = own.path
    Path(first, "file").write_text("x")
    assert own.empty() and own.path == first and os.listdir(first) == []
    os.chmod(first, 0)
    assert own.empty() and os.stat(first).st_mode & 0o777 == 0o777
    os.rename(first, tmp_path / "elsewhere")
    os.symlink(tmp_path, first)
    assert not own.empty() and own.path != first and os.listdir(own.path) == []
    for number in range(3):
        os.makedirs(f"{own.path}/{number}/deep")
    monkeypatch.setattr(folders, "PATIENCE_S", -1.0)
    second = own.path
    assert not own.empty() and own.path != second
    monkeypatch.undo()
    for number in range(20):
        Path(f"{own.path[:-1]}{number}").mkdir(exist_ok=True)
        Path(tmp_path, f"0-{number}").mkdir()
    own.path = f"{own.path}-gone"
    assert not own.empty() and os.listdir(own.path) == []
    assert own.empty()


def test_removal_is_of_the_folder_alone(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("x")
    doomed = tmp_path / "doomed"
    (doomed / "a" / ("n" * 255)).mkdir(parents=True)
    (doomed / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    os.chmod(doomed / "a", 0)
    folders.remove(str(doomed))
    assert os.listdir(tmp_path) == ["kept"] and kept.read_text() == "x"
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError):
        folders.remove(str(tmp_path / "link"))


def test_emptied_folders(tmp_path):
    deep = tmp_path / "filled"
    deep.mkdir()
    here = os.getcwd()
    try:
        os.chdir(deep)
        for _ in range(2000):
            os.mkdir("d")
            os.chdir("d")
        Path("file").write_text("x")
    finally:
        os.chdir(here)
    (deep / "link").symlink_to(tmp_path)
    (deep / "a" / "b").mkdir(parents=True)
    (deep / "a" / "b" / "c").write_text("x")
    os.chmod(deep / "a" / "b", 0)
    os.chmod(deep / "a", 0)
    kept = tmp_path / "kept"
    kept.write_text("x")
    fd = os.open(deep, folders.OPEN)
    folders.empty(fd)
    os.close(fd)
    assert os.listdir(deep) == [] and kept.exists()


def test_no_site_packages_are_readable():
    granted, listed = files.carved()
    for folder in files.masked():
        assert not files.within(os.path.realpath(folder), granted)
    assert not [path for path in granted if path == "/" or os.path.realpath(os.path.expanduser("~")) == path]
