"""Prefill, decode, lanes, packs, plans and timing over transformers. torch and transformers only.

Each name is imported when it is first asked for: most modules bring transformers, which takes seconds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lynx_exp.engine.decoding.fidelity import Fidelity
    from lynx_exp.engine.decoding.lane import Job
    from lynx_exp.engine.decoding.match import Matched
    from lynx_exp.engine.decoding.score import Scoring
    from lynx_exp.engine.engine import Engine
    from lynx_exp.engine.protocol import LaneEngine
    from lynx_exp.engine.requests.plan import BatchPlan, Request
    from lynx_exp.engine.requests.results import ActiveRow, LaneResult, Run
    from lynx_exp.engine.requests.sampling import Sampling
    from lynx_exp.engine.timing.measure import Timing
    from lynx_exp.engine.timing.window_timing import WindowTiming
    from lynx_exp.engine.timing.windows import LaneRun, Window, draw_windows

_MODULES = {
    "engine": ("Engine",),
    "decoding.fidelity": ("Fidelity",),
    "decoding.lane": ("Job",),
    "decoding.match": ("Matched",),
    "timing.measure": ("Timing",),
    "requests.plan": (
        "BatchPlan",
        "Request",
    ),
    "protocol": ("LaneEngine",),
    "requests.results": (
        "ActiveRow",
        "LaneResult",
        "Run",
    ),
    "requests.sampling": ("Sampling",),
    "decoding.score": ("Scoring",),
    "timing.window_timing": ("WindowTiming",),
    "timing.windows": ("LaneRun", "Window", "draw_windows"),
}
"""Which names each module has."""

__all__ = [
    "ActiveRow",
    "BatchPlan",
    "Engine",
    "Fidelity",
    "Job",
    "LaneEngine",
    "LaneResult",
    "LaneRun",
    "Matched",
    "Request",
    "Run",
    "Sampling",
    "Scoring",
    "Timing",
    "Window",
    "WindowTiming",
    "draw_windows",
]


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
