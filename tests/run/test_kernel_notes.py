"""Selection kernels that cannot run: what the record and the terminal say of it."""

from __future__ import annotations

import pytest

from lynx_exp.routing.backends.triton import kernels
from lynx_exp.store.read import read_cells
from tests.run.lab import POINTS, cell


def test_a_selection_kernel_that_does_not_run_is_noted(lab, monkeypatch):
    """In each cell's record, and once on the terminal. The CPU's own loops serve lynx, so its kernel is not tried."""
    pytest.importorskip("triton")
    from lynx_exp.routing.backends.triton.kernels import fallback, selection

    def broken(*_):
        raise RuntimeError("ptxas failed")

    # a score of each of 8 experts: routers and their fused kernel, whose numbers are of the hidden size, stay out of it
    monkeypatch.setattr(kernels, "chosen", lambda tensor: tensor.shape[-1] == 8)
    monkeypatch.setattr(selection, "select", broken)
    monkeypatch.setattr(fallback, "_failed", {})
    folder = lab.folder()
    lab.run([cell(POINTS[n], subtasks=["short"], batch_size=2) for n in (1, 3, 4)], folder)
    told = [(record.info["policy"], record.status["notes"]) for record in read_cells(folder)]
    line = "random_keep selects in torch (8 experts, top-2): its kernel does not run here: RuntimeError: ptxas failed"
    assert sorted((name, [n for n in notes if "kernel" in n]) for name, notes in told) == [
        ("lynx", []),
        ("random_keep", [line]),
        ("random_keep", [line]),
    ]
    assert lab.text().count(line) == 1
