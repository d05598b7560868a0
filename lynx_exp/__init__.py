"""lynx_exp: a laboratory for batch-aware expert selection in Mixture-of-Experts inference."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lynx_exp.engine import Engine
    from lynx_exp.routing import build_policy

__version__ = "0.1.0"
__all__ = ["Engine", "build_policy"]


def __getattr__(name: str) -> object:
    """`Engine` and `build_policy`, imported on first use: torch takes seconds, and `lynx-exp --help` must not wait
    for it."""
    if name == "Engine":
        from lynx_exp.engine import Engine

        return Engine
    if name == "build_policy":
        from lynx_exp.routing import build_policy

        return build_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
