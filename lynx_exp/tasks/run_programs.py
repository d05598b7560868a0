"""Run generated code and judge it by its tests; see `lynx_exp.tasks.sandbox` for what contains it."""

from __future__ import annotations

from collections.abc import Sequence

from lynx_exp.tasks.sandbox.program import ExecutionError, Program, Verdict
from lynx_exp.tasks.sandbox.sandbox import MEMORY_MIB, Sandbox, SandboxUnavailable, check_limits, open_sandbox

__all__ = ["ExecutionError", "Program", "Sandbox", "SandboxUnavailable", "Verdict", "open_sandbox", "run_programs"]


def run_programs(
    programs: Sequence[Program],
    *,
    timeout_s: float = 3.0,
    memory_mib: int = MEMORY_MIB,
    workers: int | None = None,
    sandbox: Sandbox | None = None,
) -> list[Verdict]:
    """One verdict per program, in order, by `sandbox` (default: the strongest that holds here). See `Sandbox.run`.

    SandboxUnavailable if there is none; ValueError for a limit that makes no sense; ExecutionError if the machinery
    itself fails.
    """
    check_limits(timeout_s, memory_mib, workers)
    if not programs:
        return []
    sandbox = sandbox or open_sandbox()
    return sandbox.run(programs, timeout_s=timeout_s, memory_mib=memory_mib, workers=workers)
