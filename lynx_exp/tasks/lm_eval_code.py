"""Generated code in lm-eval's own command: run in this package's sandbox, in place of the hub's metric `code_eval`.

lm-eval scores one document at a time, and starting a sandbox takes longer than most programs. So once a task's
responses are filtered all of its documents are scored at once, their programs side by side, and lm-eval is handed what
came out as it asks for one after the other.
"""

from __future__ import annotations

from collections import deque
from itertools import groupby
from typing import TYPE_CHECKING

from lynx_exp.tasks.code import CodeEval, code_run, current_run, forget_task_modules, run_from_now_on
from lynx_exp.tasks.process import MetricValues

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from lynx_exp.tasks.run_programs import Sandbox


def run_code_in(sandbox: Sandbox | None) -> None:
    """From now on, for the rest of the process, lm-eval's code tasks run what the model wrote in `sandbox` (None: the
    strongest of this machine, opened where there is a program to run). The hub is not asked for `code_eval`."""
    import evaluate
    from lm_eval.api.task import ConfigurableTask

    run_from_now_on(sandbox)
    if getattr(evaluate.load, "sandboxed", False):
        return
    load, apply = evaluate.load, ConfigurableTask.apply_filters

    def load_sandboxed(path: str, *given: object, **more: object) -> object:
        return CodeEval() if path == "code_eval" else load(path, *given, **more)

    def apply_and_score(task: ConfigurableTask) -> object:
        if not getattr(task, "UNSAFE_CODE", False):
            return apply(task)
        with code_run(_opened()):
            passed_on = apply(task)
            made = _scored(task)
        task.process_results = lambda _doc, _responses: made.popleft()
        return passed_on

    forget_task_modules()
    load_sandboxed.sandboxed = True  # type: ignore[attr-defined]
    evaluate.load, ConfigurableTask.apply_filters = load_sandboxed, apply_and_score


def _opened() -> Sandbox:
    """The process's own, opened now if it has not been."""
    run = current_run()
    if run.sandbox is None:
        from lynx_exp.tasks.run_programs import open_sandbox

        run.sandbox = open_sandbox()
    return run.sandbox


def _scored(task: ConfigurableTask) -> deque[MetricValues]:
    """The values of the task's metrics, in the order in which lm-eval asks: filter by filter, document by document."""
    run, process = current_run(), type(task).process_results
    by_doc = [list(of_doc) for _, of_doc in groupby(task.instances, key=lambda instance: instance.doc_id)]

    def every() -> list[MetricValues]:
        made = []
        for name in task.instances[0].filtered_resps:
            for number, of_doc in enumerate(by_doc):
                run.doc = (number, of_doc[0].doc)
                made.append(process(task, of_doc[0].doc, [instance.filtered_resps[name] for instance in of_doc]))
        return made

    return deque(run.process(every))
