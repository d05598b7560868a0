"""Several responses to a document, each scored by the task's own scorer: their mean (avg@k), and pass@k."""

# D documents, n responses to each

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING

from lynx_exp.tasks.code import pass_at_k
from lynx_exp.tasks.process import MetricValues

if TYPE_CHECKING:
    from lm_eval.api.filter import FilterEnsemble
    from lm_eval.api.instance import Instance


def keeps_one(ensembles: Sequence[FilterEnsemble]) -> bool:
    """Whether lm-eval would score the first response and drop the others. A task that votes among its responses, or
    takes all of them (HumanEval's pass@k), knows what to do with them by itself."""
    from lm_eval.filters.selection import MajorityVoteFilter, TakeFirstFilter, TakeKFilter

    def kinds(ensemble: FilterEnsemble) -> list[object]:
        return [made.func if isinstance(made, partial) else made for made in ensemble.filters]

    return all(
        kinds(ensemble)[-1:] == [TakeFirstFilter] and not {MajorityVoteFilter, TakeKFilter} & set(kinds(ensemble))
        for ensemble in ensembles
    )


def one_by_one(of_doc: Sequence[Instance]) -> list[Instance]:
    """An instance for each response of a document that was asked once."""
    (asked,) = of_doc
    return [replace(asked, resps=[response], filtered_resps={}) for response in asked.resps]


def pass_metric(metric: str, k: int) -> str:
    return f"pass@{k}" if metric in ("pass@1", "pass_at_1") else f"{metric}_pass@{k}"


def powers(n: int) -> list[int]:
    """k of the pass@k of n responses: 2, 4, 8 and so on, and n."""
    return sorted({n, *(2**power for power in range(1, n.bit_length()) if 2**power <= n)})


def together(values_DN: Sequence[Sequence[MetricValues]]) -> list[MetricValues]:
    """Of each document: the mean of every metric that is a number, of a corpus' metric what the first response gives,
    and for metrics of 0 and 1 the unbiased estimate of pass@k (arXiv 2107.03374, section 2.1)."""
    binary = {
        metric
        for metric in values_DN[0][0]
        if all(each.get(metric) in (0, 1) and isinstance(each[metric], Real) for of_doc in values_DN for each in of_doc)
    }
    made = []
    for of_doc in values_DN:
        document: MetricValues = {}
        for metric, first in of_doc[0].items():
            numbers = [value for each in of_doc if isinstance(value := each[metric], Real)]
            document[metric] = first if len(numbers) < len(of_doc) else sum(map(float, numbers)) / len(numbers)
        for metric in [name for name in document if name in binary]:
            right = sum(int(each[metric] == 1) for each in of_doc)
            document |= {pass_metric(metric, k): pass_at_k(len(of_doc), right, k) for k in powers(len(of_doc))}
        made.append(document)
    return made
