"""Choose a tier by trying it: nothing is run in one that let something through a moment ago."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lynx_exp.cores import usable_cores
from lynx_exp.tasks.sandbox import start_supervisor as launch
from lynx_exp.tasks.sandbox.program import ExecutionError, Program, Verdict
from lynx_exp.tasks.sandbox.self_test import HELD, self_test
from lynx_exp.tasks.sandbox.tiers import CONFINING, TO_HAVE_IT, UNSAFE, Tier

MEMORY_MIB = 1024
"""Address space: importing NumPy takes a third of it."""
LEAST_MEMORY_MIB = 128
UNSAFE_WAY = "sandbox=unsafe confirm_unsafe_code=true runs programs with process limits only"


class SandboxUnavailable(ValueError):
    """No tier that was asked for holds on this machine; the message says what to do."""


@dataclass(frozen=True)
class Sandbox:
    """A tier that has been tried. Programs are run by `run`."""

    parts: Tier
    self_test: dict[str, str]
    """Probe -> `held`, or what got through (possible only in `unsafe`)."""

    @property
    def tier(self) -> str:
        return self.parts.name

    @property
    def record(self) -> str:
        """Tier and self-test as a short JSON string, for rows of results."""
        fell = sorted(probe for probe, outcome in self.self_test.items() if outcome != HELD)
        return json.dumps({"tier": self.tier, "held": len(self.self_test) - len(fell), "fell": fell})

    def run(
        self,
        programs: Sequence[Program],
        *,
        timeout_s: float = 3.0,
        memory_mib: int = MEMORY_MIB,
        workers: int | None = None,
    ) -> list[Verdict]:
        """One verdict per program, in order. Nothing is left running when this returns or raises.

        `timeout_s` is wall-clock time of one program and its test; `memory_mib` the address space of each of the two,
        the interpreter's own 50 or so included; `workers` how many run at once (default: the CPUs that this process may
        use). ValueError for a limit that makes no sense; ExecutionError if the machinery itself fails.
        """
        workers = check_limits(timeout_s, memory_mib, workers)
        if not programs:
            return []
        return launch.run(self.parts, programs, timeout_s=timeout_s, memory_mib=memory_mib, workers=workers)


def check_limits(timeout_s: float, memory_mib: int, workers: int | None) -> int:
    """The number of workers; ValueError for a limit that makes no sense."""
    if timeout_s <= 0:
        raise ValueError(f"timeout_s: {timeout_s}, must be above 0")
    if memory_mib < LEAST_MEMORY_MIB:
        raise ValueError(f"memory_mib: {memory_mib}, must be at least {LEAST_MEMORY_MIB}: the interpreter needs some")
    if workers is None:
        workers = usable_cores()
    if workers < 1:
        raise ValueError(f"workers: {workers}, must be at least 1")
    return workers


def open_sandbox(name: str = "auto", *, confirm_unsafe_code: bool = False) -> Sandbox:
    """The sandbox of a tier that passes its self-test now; `auto`: the strongest. The same one again in a process.

    ValueError for an unknown name, and for `unsafe` without confirmation; SandboxUnavailable if a tier (or any, for
    `auto`) does not hold here.
    """
    known = {tier.name: tier for tier in (*CONFINING, UNSAFE)}
    if name == UNSAFE.name and not confirm_unsafe_code:
        raise ValueError(
            "sandbox: unsafe runs generated code with the rights of this user: it may read and delete files, use the "
            "network, stop processes. If that is what you want, say confirm_unsafe_code=true"
        )
    if name != "auto" and name not in known:
        raise ValueError(f"sandbox: {name}, must be one of auto, {', '.join(known)}")
    return tried(CONFINING if name == "auto" else (known[name],))


@cache
def tried(tiers: tuple[Tier, ...]) -> Sandbox:
    """The first of `tiers` that holds. SandboxUnavailable, with what failed in each, if none does."""
    failures = []
    for tier in tiers:
        if sys.platform != "linux" and tier != UNSAFE:
            failures.append(f"{tier.name}: only Linux has what it takes")
            continue
        try:
            results = self_test(tier)
        except ExecutionError as error:
            failures.append(f"{tier.name}: {error} ({TO_HAVE_IT.get(tier.name, 'no remedy known')})")
            continue
        except OSError as error:  # of the files that it tempts programs with, which no other tier could make either
            raise SandboxUnavailable(f"sandbox: cannot be tried: {error.filename}: {error.strerror}") from error
        fell = [f"{probe} ({outcome})" for probe, outcome in results.items() if outcome != HELD]
        if not fell or tier == UNSAFE:
            return Sandbox(tier, results)
        failures.append(f"{tier.name}: fell to {', '.join(fell)} ({TO_HAVE_IT.get(tier.name, 'no remedy known')})")
    raise SandboxUnavailable(f"sandbox: no way to confine generated code here. {'; '.join(failures)}. {UNSAFE_WAY}")
