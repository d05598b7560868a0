"""What lanes and timings need of a vLLM engine in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.routing import Phases, Policy
from lynx_exp.vllm_plugin.record import LaneCount

if TYPE_CHECKING:
    from vllm import LLM


class VllmHost(Protocol):
    """A `vllm.LLM` whose plugin takes policies from requests."""

    llm: LLM
    max_rows: int
    """Requests of a step at most."""
    step_tokens: int
    """Tokens of a step at most, prompts included."""
    block: int
    """Tokens of a block of keys and values."""
    cache_tokens: int
    """Tokens whose keys and values there is room for."""
    stopper: Stopper

    @property
    def experts_implementation(self) -> str | None:
        """vLLM's version, and its own experts."""
        ...

    def counts(self) -> list[LaneCount]:
        """Decode steps of all lanes since the last call."""
        ...

    def new_lane(self) -> int:
        """A number that no lane of this engine has had."""
        ...

    def act(self, policy: Policy | None, phases: Phases = "decode", layers: str | None = None) -> Act:
        """The policy, which this model can run, and where it acts. ValueError, with the reason, if it cannot."""
        ...
