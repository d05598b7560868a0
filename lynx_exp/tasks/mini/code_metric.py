"""pass@1 by execution, for lm-eval: a filter runs the programs, a metric reads the verdicts.

A filter sees all responses of a task at once and a metric only one, so the programs run in the filter, side by side.
See `lynx_exp.tasks.sandbox` for what contains them and what does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lynx_exp.tasks.code import current_run
from lynx_exp.tasks.run_programs import Program

PASSED = "passed"


def run_tests(resps: Iterable[Sequence[str]], docs: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Per document and response: "passed" if `prompt + response` passes the document's test, else why it did not."""
    counted = [list(of_doc) for of_doc in resps]
    programs = [
        Program(source=doc["prompt"] + response, test=doc["test"], entry_point=doc["entry_point"])
        for of_doc, doc in zip(counted, docs, strict=True)
        for response in of_doc
    ]
    run = current_run()
    reasons = iter([verdict.reason for verdict in run.judge(programs)])
    verdicts = [[next(reasons) for _ in of_doc] for of_doc in counted]
    for number, of_doc in enumerate(verdicts):
        run.note(number, of_doc)
    return verdicts


def pass_at_1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of verdicts that are "passed"; `references` (the tests) have already been run."""
    return sum(verdict == PASSED for verdict in predictions) / len(predictions)


pass_at_1.__name__ = "pass@1"  # lm-eval reports a metric given as a function under this name
