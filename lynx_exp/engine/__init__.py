"""Prefill, decode, lanes, packs, plans and timing over transformers. torch and transformers only."""

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

__all__ = [
    "ActiveRow",
    "BatchPlan",
    "Engine",
    "Fidelity",
    "Job",
    "LaneEngine",
    "LaneResult",
    "Matched",
    "Request",
    "Run",
    "Sampling",
    "Scoring",
    "Timing",
]
