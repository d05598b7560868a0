"""Experts for few rows: against their definition, then timed against grouped_mm and the rate of a plain copy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import experts_kernel
from benchmarks.on_gpu.cases import arguments
from benchmarks.on_gpu.records import case, check
from lynx_exp.models.expert_kernels import few_rows


def main() -> None:
    given = arguments(__doc__).parse_args()
    if given.device == "cpu":
        _values_alone()
        return
    found = experts_kernel.check(given.device, quick=True)
    check("few_rows equals its definition", found["compared"], found["failures"])
    for one in experts_kernel.measure(given.device, rows=(16,) if given.quick else (16, 64, 256, 1)):
        case("experts", **one)


@torch.inference_mode()
def _values_alone() -> None:
    """Under the interpreter: no graph, no time."""
    torch.manual_seed(0)
    failures = []
    E, K, D, I, T = 4, 2, 16, 16, 3  # noqa: E741
    experts: Any = experts_kernel.Experts(SimpleNamespace(), E, D, I, torch.float32, "cpu")
    inputs = experts_kernel.routed(T, K, E, D, torch.float32, "cpu")
    found, expected = few_rows(experts, *inputs), experts_kernel.defined(experts, *inputs)
    if not float((found - expected).norm() / expected.norm()) <= experts_kernel.FAR[torch.float32]:
        failures.append(f"T {T}: values differ from the definition")
    check("few_rows equals its definition", 1, failures)


if __name__ == "__main__":
    main()
