"""A machine without a process or memory to spare costs the verdicts of the programs that it cannot start, no others."""

from __future__ import annotations

import errno
import os

import pytest

from lynx_exp.tasks.sandbox import Verdict, tiers
from lynx_exp.tasks.sandbox import start_supervisor as launch
from lynx_exp.tasks.sandbox.jail import supervisor
from lynx_exp.tasks.sandbox.jail.confine import Plan
from lynx_exp.tasks.sandbox.jail.forks import ForkServer
from lynx_exp.tasks.sandbox.program import NOT_STARTED

PLENTY_MIB = 2**16
"""The programs are forked from this process, whatever it has loaded."""


class Starved(ForkServer):
    """Whose forks of some turns fail, as the kernel's would."""

    turns: tuple[int, ...] = ()
    error = errno.EAGAIN
    turn = 0

    def fork(self, be):
        self.turn += 1
        if self.turn in self.turns:
            raise OSError(self.error, os.strerror(self.error))
        return super().fork(be)


def run(monkeypatch, folder, turns, error=errno.EAGAIN, programs=4):
    monkeypatch.setattr(Starved, "turns", turns)
    monkeypatch.setattr(Starved, "error", error)
    monkeypatch.setattr(supervisor, "ForkServer", Starved)
    slot = supervisor.start_slot(0, Plan(**launch.plan(tiers.UNSAFE, PLENTY_MIB, 1)), str(folder), [])
    job = {"source": "def f(): return 1", "test": "assert f() == 1", "entry_point": None, "prelude": ""}
    try:
        verdicts = supervisor.Run([slot], [job] * programs, 30.0).all()
    finally:
        slot.control.close()
        if slot.channel is not None:
            slot.channel.close()
        os.wait()
    return [Verdict(passed=passed, reason=reason) for passed, reason in verdicts]


@pytest.mark.parametrize(
    ("turns", "lost"),
    [((1,), {0}), ((2,), {0}), ((3,), {1}), ((4,), {2}), ((3, 4), {1, 2}), ((1, 2, 3), {0, 1, 2})],
    ids=[
        "the first tester",
        "the first candidate",
        "a candidate",
        "a later candidate",
        "two candidates",
        "three testers",
    ],
)
def test_one_verdict_each(turns, lost, monkeypatch, tmp_path):
    verdicts = run(monkeypatch, tmp_path, turns)
    assert {number for number, it in enumerate(verdicts) if it.not_started} == lost
    assert {it.reason for it in verdicts} == {"passed", f"{NOT_STARTED}: {os.strerror(errno.EAGAIN)}"}


def test_no_memory(monkeypatch, tmp_path):
    first, *others = run(monkeypatch, tmp_path, (2,), errno.ENOMEM)
    assert first == Verdict(passed=False, reason=f"not started: {os.strerror(errno.ENOMEM)}")
    assert {it.reason for it in others} == {"passed"}


def test_another_error_is_the_machinerys(monkeypatch, tmp_path):
    with pytest.raises((RuntimeError, OSError)):
        run(monkeypatch, tmp_path, (2,), errno.EPERM)


def test_both_sides_mean_the_same_word():
    assert supervisor.NOT_STARTED == NOT_STARTED
