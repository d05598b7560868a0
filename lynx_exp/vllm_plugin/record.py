"""What the policy did, counted in the worker.

L layers, G lanes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from lynx_exp.vllm_plugin.scheduled_rows import LaneStep, StepRows

_EVERY = 5.0
"""Seconds between two writings of a report."""


@dataclass(frozen=True, kw_only=True)
class LaneCount:
    """A step of one lane."""

    step: LaneStep
    before: Sequence[int]
    """A layer: distinct experts of the router's own choice."""
    after: Sequence[int]
    """A layer: distinct experts that ran."""
    changed: Sequence[int] = ()
    """A layer: assignments of the decode rows that the policy changed."""
    prompt_changed: Sequence[int] = ()
    """A layer: likewise of the others."""


class Record:
    """Sums over decode steps, on the device until somebody asks; with `keep`, each lane's steps too."""

    def __init__(self, label: str, *, keep: bool, report: str | None) -> None:
        self.label, self._keep = label, keep
        self._report = None if report is None else Path(report)
        self._written = monotonic()
        self.forward_passes = 0
        """Steps with any row."""
        self.decode_rows = self.prefill_rows = self.mixed_steps = 0
        self._by_rows: dict[int, tuple[int, Tensor]] = {}
        self._kept: list[LaneCount] = []

    def add(self, rows: StepRows, counts_4LG: Tensor) -> None:
        """A step that has been launched. `counts_4LG`: as `Buffers` has it, about to be overwritten."""
        decode = int(rows.decode_T.sum())
        self.forward_passes += 1
        self.decode_rows += decode
        self.prefill_rows += len(rows.decode_T) - decode
        self.mixed_steps += 0 < decode < len(rows.decode_T)
        if self._keep:
            counts = counts_4LG[:, :, : len(rows.lanes)].permute(2, 0, 1).tolist()
            self._kept += [
                LaneCount(step=lane, before=before, after=after, changed=changed, prompt_changed=prompt_changed)
                for lane, (before, after, changed, prompt_changed) in zip(rows.lanes, counts, strict=True)
                if lane.live_rows or lane.repeated or lane.acting.phases != "decode"
            ]
        elif decode:
            now_2L = counts_4LG[:2, :, 0]
            steps, total = self._by_rows.get(decode, (0, torch.zeros_like(now_2L, dtype=torch.long)))
            self._by_rows[decode] = steps + 1, total.add_(now_2L)
        if self._report is not None and monotonic() - self._written > _EVERY:
            self.write()

    def take(self) -> list[LaneCount]:
        """Lane steps since the last call."""
        taken, self._kept = self._kept, []
        return taken

    def summary(self) -> dict[str, object]:
        """As JSON. Experts: means over decode steps, of the step's decode rows."""
        steps = sum(count for count, _ in self._by_rows.values())
        total = sum(total.double().cpu() for _, total in self._by_rows.values())
        return {
            "policy": self.label,
            "forward_passes": self.forward_passes,
            "decode_rows": self.decode_rows,
            "prefill_rows": self.prefill_rows,
            "mixed_steps": self.mixed_steps,
            "decode_steps": steps,
            "experts_before": (total[0] / steps).tolist() if steps else None,  # type: ignore[index]
            "experts_after": (total[1] / steps).tolist() if steps else None,  # type: ignore[index]
            "by_rows": {
                str(rows): {
                    "steps": count,
                    "before": (total[0].double().mean() / count).item(),
                    "after": (total[1].double().mean() / count).item(),
                }
                for rows, (count, total) in sorted(self._by_rows.items())
            },
        }

    def write(self) -> None:
        """The summary to the report's file, in one step."""
        assert self._report is not None
        self._written = monotonic()
        partial = self._report.with_name(f".{self._report.name}.{os.getpid()}.tmp")
        partial.write_text(json.dumps(self.summary(), indent=1) + "\n")
        partial.replace(self._report)

    def close(self, acts: bool) -> None:
        """Write the report; say aloud if a policy that was to act on decode rows has seen none."""
        if acts and self.forward_passes and not self.decode_rows:
            say(
                f"WARNING: {self.label} never acted: no decode row in {self.forward_passes} forward passes "
                f"({self.prefill_rows} prefill rows); whatever was measured is vanilla's"
            )
        if self._report is not None and self.forward_passes:
            self.write()


def say(line: str) -> None:
    """vLLM silences other packages' loggers."""
    print(f"lynx_exp: {line}", file=sys.stderr, flush=True)
