"""A tier with a hole in it is refused, and the hole is named."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import pytest

from lynx_exp.tasks import Program
from lynx_exp.tasks.sandbox import ExecutionError, SandboxUnavailable, open_sandbox, tiers
from lynx_exp.tasks.sandbox import self_test as probes
from lynx_exp.tasks.sandbox import start_supervisor as launch
from lynx_exp.tasks.sandbox.jail import landlock
from lynx_exp.tasks.sandbox.sandbox import tried
from lynx_exp.tasks.sandbox.self_test import PROBES, self_test
from tests.tasks.sandbox.conftest import PATIENT_S

BARE = tiers.Tier(name="bare", jail="none", program_namespaces=False, landlock="none", seccomp=False, drop_user=False)
FILTERED = dataclasses.replace(BARE, name="filtered", seccomp=True)
HOLES = {
    "no filter, no rules": (
        BARE,
        {
            *("read outside", "write outside", "tcp", "udp", "unix sockets"),
            *("the parent's processes", "start processes", "outlive the timeout"),
        },
    ),
    "no rules": (FILTERED, {"read outside", "write outside", "the parent's processes"}),
    "no filter": (
        dataclasses.replace(tiers.LANDLOCK, name="filterless", seccomp=False),
        {"udp", "unix sockets", "start processes", "outlive the timeout", "write outside"},
    ),
    "no limits": (dataclasses.replace(tiers.LANDLOCK, name="limitless", limits=False), {"memory"}),
}


@pytest.mark.parametrize("hole", HOLES)
def test_holes(hole, have):
    tier, fallen = HOLES[hole]
    have(tier)
    if hole == "no filter" and os.geteuid() == 0:
        fallen = fallen - {"write outside"}  # modes of files that belong to another user than the program's
    with pytest.raises(SandboxUnavailable) as refusal:
        tried((tier,))
    for probe in PROBES:
        if probe in fallen:
            assert probe in str(refusal.value)
        elif tier.landlock == "none" or probe not in ("the parent's processes", "unix sockets", "tcp"):
            assert f"{probe} (" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_namespace_holds_processes_without_the_filter(have):
    """Defence in depth: what was started dies with the first process of the namespace."""
    tier = dataclasses.replace(tiers.NAMESPACES, name="filterless", seccomp=False)
    have(tier)
    results = self_test(tier)
    assert results["start processes"] != "held"
    for probe in ("outlive the timeout", "tcp", "udp", "unix sockets", "read outside", "write outside"):
        assert results[probe] == "held", probe


def test_every_probe_can_fall():
    assert set(PROBES) - {"the environment"} == set().union(*(fallen for _, fallen in HOLES.values()))


def test_the_environment_is_probed(monkeypatch, have):
    have(BARE)
    leak = "import os; os.environ['SECRET'] = 'x'; os.environ.clear = lambda: None; "
    monkeypatch.setattr(launch, "BOOT", leak + launch.BOOT)
    assert "SECRET" in self_test(BARE)["the environment"]


def test_what_a_tier_could_not_end_is_ended_all_the_same(monkeypatch, have):
    have(BARE)
    seen: list[str] = []
    real = probes.survivors
    monkeypatch.setattr(probes, "survivors", lambda marker: seen.append(marker) or real(marker))
    assert self_test(BARE)["outlive the timeout"] == "processes are left"
    assert real(seen[0]) == [], "after the moment that a killed process takes"


def test_auto_takes_the_first_that_holds(have):
    have(tiers.LANDLOCK)
    assert tried((FILTERED, tiers.LANDLOCK)).tier == "landlock"
    with pytest.raises(SandboxUnavailable, match="bare: fell to .*filtered: fell to .*confirm_unsafe_code=true"):
        tried((BARE, FILTERED))


def test_no_bwrap(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable, match="bwrap is not on the PATH .install bubblewrap"):
        tried((dataclasses.replace(tiers.BUBBLEWRAP, name="bubblewrap"), dataclasses.replace(BARE, name="again")))


def test_only_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="only Linux has what it takes.*sandbox=unsafe"):
        tried((dataclasses.replace(tiers.LANDLOCK, name="landlock on a Mac"),))


def test_a_kernel_without_landlock(monkeypatch):
    monkeypatch.setattr(landlock, "CREATE_RULESET", 9999)
    assert landlock.version() == 0
    with pytest.raises(OSError):
        landlock.ruleset([], [], None, [])


def test_unsafe_must_be_confirmed():
    with pytest.raises(ValueError, match="confirm_unsafe_code=true"):
        open_sandbox("unsafe")
    unsafe = open_sandbox("unsafe", confirm_unsafe_code=True)
    assert unsafe.tier == "unsafe"
    assert "tcp" in json.loads(unsafe.record)["fell"]
    programs = [
        Program(source=source, test="assert f() == 1", entry_point=None)
        for source in ("def f(): return 1", "def f(): return 2", "import os\ndef f(): os._exit(0)")
    ]
    assert [it.passed for it in unsafe.run(programs, timeout_s=PATIENT_S)] == [True, False, False]


def test_names():
    with pytest.raises(ValueError, match="sandbox: docker, must be one of auto, bubblewrap"):
        open_sandbox("docker")


def test_once_per_process(sandbox):
    assert open_sandbox(sandbox.tier) is open_sandbox(sandbox.tier)
    assert json.loads(sandbox.record) == {"tier": sandbox.tier, "held": len(PROBES), "fell": []}
    assert open_sandbox().tier in {tier.name for tier in tiers.CONFINING}


def test_a_tier_that_cannot_be_had_is_an_error(have):
    have(tiers.LANDLOCK)
    with pytest.raises(ExecutionError, match="a process that forks programs: .*(mount|unshare)"):
        launch.run(
            dataclasses.replace(tiers.LANDLOCK, program_namespaces=True, drop_user=False),
            [Program(source="", test="", entry_point=None)],
            timeout_s=PATIENT_S,
            memory_mib=512,
            workers=1,
        )
