"""Prefill, decode, lanes, packs, plans and timing over transformers. torch and transformers only.

Each name is imported when it is first asked for: most modules bring transformers, which takes seconds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_exp.engine.engine import Engine
    from lynx_exp.engine.fidelity import Fidelity
    from lynx_exp.engine.lane import Job
    from lynx_exp.engine.match import Matched
    from lynx_exp.engine.measure import Timing
    from lynx_exp.engine.plan import BatchPlan, Request
    from lynx_exp.engine.protocol import LaneEngine
    from lynx_exp.engine.results import ActiveRow, LaneResult, Run
    from lynx_exp.engine.sampling import Sampling
    from lynx_exp.engine.score import Scoring
    from lynx_exp.engine.window_timing import WindowTiming
    from lynx_exp.engine.windows import LaneRun, Window, draw_windows

_MODULES = {
    "engine": ("Engine",),
    "fidelity": ("Fidelity",),
    "lane": ("Job",),
    "match": ("Matched",),
    "measure": ("Timing",),
    "plan": (
        "BatchPlan",
        "Request",
    ),
    "protocol": ("LaneEngine",),
    "results": (
        "ActiveRow",
        "LaneResult",
        "Run",
    ),
    "sampling": ("Sampling",),
    "score": ("Scoring",),
    "window_timing": ("WindowTiming",),
    "windows": ("LaneRun", "Window", "draw_windows"),
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


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
