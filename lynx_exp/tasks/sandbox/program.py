"""What is run, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass


class ExecutionError(RuntimeError):
    """The machinery that runs programs failed; nothing is known about any program."""


@dataclass(frozen=True, kw_only=True)
class Program:
    source: str
    """Python code to be judged. Not trusted."""
    test: str
    """Trusted Python code. With `entry_point` it defines `check(candidate)`, which raises if the candidate is wrong;
    without, it is run as it is, and names that it does not define are those of `source`."""
    entry_point: str | None
    """Name in `source` of the function or class that is handed to `check`."""
    prelude: str = ""
    """Trusted Python code that is run before the test, for helpers that the test calls (HumanEval's prompts have some).
    Its names are the test's own, except `entry_point`, functions without a body and classes: those are the source's."""


TRANSPORT = "transport"
"""How the reason begins of a program that could not be judged."""
NOT_STARTED = "not started"
"""And of one that was not run at all."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    passed: bool
    reason: str
    """`passed` if and only if it did; else `timeout`, `raised <class of exception>`, `the prelude raised <class>`,
    `the entry point is not defined`, `malformed reply`, how the process ended, or `transport: <why>`: a value could not
    cross between program and test, and what a plain process would have said of it is not known; or
    `not started: <why>`: the machine had no process or memory left."""

    @property
    def transport(self) -> bool:
        """Whether there is no verdict, only a score of 0."""
        return self.reason.startswith(TRANSPORT)

    @property
    def not_started(self) -> bool:
        """Whether that is the machine's fault, not the program's."""
        return self.reason.startswith(NOT_STARTED)
