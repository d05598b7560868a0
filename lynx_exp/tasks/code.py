"""Generated code in lm-eval's tasks: what stands in for the hub's metric `code_eval`, and runs programs in the sandbox.

lm-eval scores one document at a time, which would run one program at a time. So results are processed twice: the first
time only notes which programs there are, then all of them run side by side, the second time reads their verdicts.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import comb
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from lynx_exp.tasks.process import Doc
from lynx_exp.tasks.run_programs import Program, Verdict, run_programs

if TYPE_CHECKING:
    from lynx_exp.tasks.run_programs import Sandbox

Result = TypeVar("Result")


class CodeRun:
    """The programs of one scoring."""

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        """`sandbox`: None for the strongest that this machine has, opened where there is a program to run."""
        self.sandbox = sandbox
        self.doc: tuple[int, Doc] = (0, {})
        """Number and content of the document being scored."""
        self._noted: dict[Program, None] | None = None
        """Programs of the documents being scored for the first time; None: they are scored in earnest."""
        self._verdicts: dict[Program, Verdict] = {}
        self._of_doc: dict[int, list[str]] = {}

    def process(self, each: Callable[[], Sequence[Result]]) -> Sequence[Result]:
        """`each`, which scores all documents and may be called twice, once every program has run."""
        self._noted = {}
        made = each()
        noted, self._noted = list(self._noted), None
        if not noted:
            return made
        self.judge(noted)
        return each()

    def judge(self, programs: Sequence[Program]) -> list[Verdict]:
        """Their verdicts, in order: run at once, unless they have been, or are only noted now."""
        if self._noted is not None:
            self._noted |= dict.fromkeys(programs)
            return [Verdict(passed=False, reason="not run yet")] * len(programs)
        new = list(dict.fromkeys(program for program in programs if program not in self._verdicts))
        self._verdicts |= zip(new, self._run(new), strict=True)
        return [self._verdicts[program] for program in programs]

    def note(self, doc: int, reasons: Sequence[str]) -> None:
        """What became of the programs of a document."""
        if self._noted is None:
            self._of_doc[doc] = list(reasons)

    def reasons(self, doc: int) -> list[str]:
        return self._of_doc.get(doc, [])

    @property
    def record(self) -> str | None:
        """The sandbox's tier and self-test, as JSON; None if nothing was run."""
        return self.sandbox.record if self.sandbox is not None and self._verdicts else None

    def _run(self, programs: Sequence[Program]) -> list[Verdict]:
        if not programs:
            return []
        if self.sandbox is None:
            from lynx_exp.tasks.run_programs import open_sandbox

            self.sandbox = open_sandbox()
        return run_programs(programs, sandbox=self.sandbox)


_RUN: ContextVar[CodeRun | None] = ContextVar("run", default=None)
_LOADING: ContextVar[bool] = ContextVar("loading", default=False)


@contextmanager
def code_run(sandbox: Sandbox | None) -> Iterator[CodeRun]:
    """What lm-eval's code tasks run in here."""
    token = _RUN.set(CodeRun(sandbox))
    try:
        run = _RUN.get()
        assert run is not None
        yield run
    finally:
        _RUN.reset(token)


def run_from_now_on(sandbox: Sandbox | None) -> None:
    """Like `code_run`, for the rest of the process."""
    _RUN.set(CodeRun(sandbox))


def current_run() -> CodeRun:
    """The one that scores now; a new one for somebody who uses a task with lm-eval alone."""
    return _RUN.get() or CodeRun()


class CodeEval:
    """lm-eval's `evaluate.load("code_eval")`: the same arguments, the same numbers, other isolation."""

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: object,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, object]]]]]:
        """(pass@k, results by problem): `references` are tests, `predictions` the programs tried on each.

        pass@k is the unbiased estimator of arXiv 2107.03374, section 2.1, for each k that has enough programs.
        """
        if _LOADING.get():  # lm-eval tries it out as it imports a task
            return {f"pass@{n}": 0.0 for n in k}, {}
        run = current_run()
        number, doc = run.doc
        programs = [
            [program_of(source, test, doc) for source in tried]
            for test, tried in zip(references, predictions, strict=True)
        ]
        verdicts = iter(run.judge([program for tried in programs for program in tried]))
        by_problem = [[next(verdicts) for _ in tried] for tried in programs]
        run.note(number, [verdict.reason for tried in by_problem for verdict in tried])
        passed = [(len(tried), sum(verdict.passed for verdict in tried)) for tried in by_problem]
        rates = {
            f"pass@{n}": sum(pass_at_k(total, right, n) for total, right in passed) / len(passed)
            for n in k
            if all(total >= n for total, _ in passed)
        }
        return rates, {
            at: [(i, {"passed": verdict.passed, "result": verdict.reason}) for i, verdict in enumerate(tried)]
            for at, tried in enumerate(by_problem)
        }


def pass_at_k(total: int, right: int, k: int) -> float:
    """Chance that at least one of `k` programs drawn from `total`, of which `right` pass, passes."""
    return 1.0 - comb(total - right, k) / comb(total, k)


def program_of(source: str, test: str, doc: Doc) -> Program:
    """What is known of a program beyond its text: HumanEval's prompt defines helpers that its tests trust."""
    prompt, check, entry = (doc.get(name) for name in ("prompt", "test", "entry_point"))
    if isinstance(prompt, str) and isinstance(entry, str) and test == f"{check}\ncheck({entry})":
        return Program(source=source, test=str(check), entry_point=entry, prelude=complete_part(prompt))
    return Program(source=source, test=test, entry_point=None)


def complete_part(prompt: str) -> str:
    """The statements of a prompt up to the last that is whole: some end in the middle of a function (infilling), or
    with a comment where a function should have a body. What is cut off is the candidate's to complete."""
    lines = prompt.splitlines(keepends=True)
    for count in (len(lines), *(at for at in reversed(range(len(lines))) if not lines[at][:1].isspace())):
        part = "".join(lines[:count])
        with suppress(SyntaxError, ValueError):
            ast.parse(part)
            return part
    return ""


def forget_task_modules() -> dict[str, ModuleType]:
    """Take out of `sys.modules` what lm-eval has imported beside definitions, and would use again as it is: a module
    that holds another `code_eval` runs programs outside of the sandbox."""
    names = [name for name, module in list(sys.modules.items()) if "__mtime__" in getattr(module, "__dict__", {})]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def sandboxed_code_eval() -> Iterator[None]:
    """`evaluate.load("code_eval")` gives a `CodeEval` in here: the hub is not asked, and nothing is run. The modules of
    definitions are imported anew, and lm-eval alone finds its own again afterwards."""
    import evaluate  # takes seconds

    load, others = evaluate.load, forget_task_modules()
    token = _LOADING.set(True)
    evaluate.load = lambda path, *given, **more: CodeEval() if path == "code_eval" else load(path, *given, **more)
    try:
        yield
    finally:
        evaluate.load = load
        _LOADING.reset(token)
        forget_task_modules()
        sys.modules.update(others)
