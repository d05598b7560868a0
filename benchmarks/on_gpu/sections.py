"""The sections of `benchmarks/gpu.py`, in order of worth. A new one is registered here: a module of this folder with a
`main`, run as a process of its own, that tells what it finds by `records.check` and `records.case`; what it should
reach stands in `goals.GOALS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

MINUTES = 8.0
"""That the limits below add up to, the start of each process included."""
QUICK_MINUTES = 3.0
"""What `--quick` has."""


@dataclass(frozen=True, kw_only=True)
class Section:
    name: str
    module: str
    """Of `benchmarks.on_gpu`."""
    options: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ("--tiny",)
    """Options instead of those above where there is no GPU: the same code on the smallest shapes."""
    quick: tuple[str, ...] = ("--quick",)
    """Options instead of the first for a run that shows whether all works on this card: true shapes, few cases."""
    limit_s: float
    """Of MINUTES; what the sections before it leave over, it may use, too."""
    needs: tuple[str, ...] = ()
    """Modules without which it is passed over."""

    def command(self, device: str, quick: bool = False) -> list[str]:
        """Arguments of Python."""
        options = self.tiny if device == "cpu" else self.quick if quick else self.options
        return ["-m", f"benchmarks.on_gpu.{self.module}", "--device", device, *options]

    def lacks(self) -> list[str]:
        return [name for name in self.needs if find_spec(name) is None]


SECTIONS: Sequence[Section] = (
    Section(name="compile", module="warm", limit_s=55),
    Section(
        name="qwen3_30b_a3b",
        module="model",
        options=("--shape", "qwen3_30b_a3b", "--batches", "16", "64", "1", "--stream", "256"),
        quick=("--shape", "qwen3_30b_a3b", "--layers", "4", "--batches", "16", "--stream", "64", "--repeats", "2"),
        limit_s=140,
    ),
    Section(name="selection", module="layer", limit_s=40),
    Section(name="kernels", module="kernels", limit_s=45),
    Section(name="experts", module="experts", limit_s=40),
    Section(
        name="mixtral_8x7b",
        module="model",
        options=("--shape", "mixtral_8x7b", "--batches", "16", "4"),
        quick=("--shape", "mixtral_8x7b", "--layers", "2", "--batches", "4", "--repeats", "2"),
        tiny=("--tiny", "--shape", "mixtral_8x7b"),
        limit_s=60,
    ),
    Section(name="tokens", module="tokens", limit_s=40),
    Section(name="lynx-exp", module="sweep", limit_s=60, needs=("hydra", "lm_eval", "pandas", "pyarrow", "rich")),
)
