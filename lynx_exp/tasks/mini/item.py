"""One example of a mini task: what the model reads, what it should write, and the row that lm-eval scores it by."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Item:
    prompt: str
    """Text up to where the model continues; equal to what the task's lm-eval YAML renders from `doc`."""
    answer: str
    """The gold continuation, its leading white space included."""
    doc: dict[str, object] = field(hash=False)
    """The row of the task's JSONL file."""
