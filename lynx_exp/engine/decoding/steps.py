"""How decode steps run: recorded once and replayed, with one decoder layer compiled; or launched from Python. What was
asked for, what came of it, and why not, for the record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

from transformers import PreTrainedModel

from lynx_exp.engine.decoding.compiled_decoder import CompiledDecoder, LayerCode, form_of
from lynx_exp.engine.decoding.decoder import DIRECT, Decoder, DirectDecoder, correlate
from lynx_exp.engine.decoding.exactness import is_exact
from lynx_exp.engine.decoding.graph import Capture, CudaGraphs
from lynx_exp.engine.decoding.lane import Job
from lynx_exp.engine.decoding.stream import MakeDecoder
from lynx_exp.engine.kv_cache.slots import keeps_states
from lynx_exp.models import Router
from lynx_exp.models.experts import using_experts
from lynx_exp.models.rank_agreement import group_of
from lynx_exp.routing.backends.triton.kernels.fallback import reason_of

StepsMode = Literal["auto", "captured", "eager"]


class Steps:
    """Of one engine. `auto`: recorded on a GPU, where that works; `captured`: or an error; `eager`: never."""

    def __init__(self, mode: StepsMode, model: PreTrainedModel, routers: Sequence[Router]) -> None:
        """ValueError for another word, or for `captured` where it cannot be."""
        if mode not in get_args(StepsMode):
            raise ValueError(f"steps={mode}: must be one of {', '.join(get_args(StepsMode))}")
        self.mode, self._model, self._routers = mode, model, routers
        self.on_gpu = model.get_input_embeddings().weight.is_cuda
        self.reason = _why_eager(mode, model, routers, self.on_gpu)
        """Why steps are launched from Python; None: they are recorded."""
        self._held_back: str | None = None
        """The same of the jobs at hand."""
        self.capture: Capture | None = CudaGraphs() if self.reason is None else None
        """What records them."""
        self.backend: str | Callable[..., object] | None = "inductor" if self.on_gpu else None
        """What compiles a layer of them; None: nothing does."""
        self.not_compiled: str | None = None
        """Why none is, though it was tried."""
        self._code: LayerCode | None = None
        self._tells = self.on_gpu
        self.always_leads: bool | None = None
        """Whether a step is always launched before the tokens of the last are read; None: as it pays."""
        self.rows: int | None = None
        """Seats of the steps that a run last recorded."""
        self._tried: dict[tuple[int, str | None], bool] = {}
        """By rows and way: whether they were exact."""
        self.exact: bool | None = None
        """Whether tokens there are known not to depend on who else is in the batch."""
        self.experts: str | None = None
        """How experts are computed there."""
        self.say: Callable[[str], None] = lambda _text: None
        """Told what takes long before a first step."""
        if mode == "captured" and self.reason is not None:
            raise ValueError(f"steps=captured: {self.reason}")

    def record_with(self, capture: Capture) -> None:
        """Record so, on any device."""
        self.capture, self.reason, self._tells = capture, None, True

    def forget(self) -> None:
        """What came of the runs so far: the next record is of those to come."""
        self.rows, self.exact, self.experts, self._held_back = None, None, None, None

    def refuse(self, reason: str) -> None:
        """A recording failed: no other is tried. ValueError where it was asked for."""
        if self.mode == "captured":
            raise ValueError(f"steps=captured: {reason}")
        self.reason, self.capture, self.rows, self.exact = reason, None, None, None

    def capture_for(self, jobs: Sequence[Job]) -> Capture | None:
        """What records the steps of these jobs; None: they run from Python."""
        if self.capture is None:
            return None
        names = sorted({name for job in jobs for request in job.requests for name, _ in request.processing})
        self._held_back = None
        if keeps_states(self._model.config.get_text_config()):
            self.hold_back("its layers keep states, which a step that is done again would move on twice")
        elif names:
            self.hold_back(f"{', '.join(names)}: needs each response so far, which the host has")
        return self.capture if self._held_back is None else None

    def hold_back(self, reason: str) -> None:
        """The jobs at hand run from Python. ValueError where a recording was asked for."""
        if self.mode == "captured":
            raise ValueError(f"steps=captured: {reason}")
        self._held_back = reason

    def began(self, make_decoder: MakeDecoder, rows: int, experts: str | None) -> None:
        """A run records steps of so many rows, whose experts are computed so (None: as the model does)."""
        with using_experts(self._model, experts):
            way = self._model.config.get_text_config()._experts_implementation
            if (rows, way) not in self._tried:
                self._tried[rows, way] = is_exact(self._model, self._routers, make_decoder, rows)
        self.rows, self.experts, self.exact = rows, way, self._tried[rows, way]

    def decoder(self, plain: type[Decoder]) -> MakeDecoder:
        """`plain`, or the same compiled, where steps are recorded and it can be."""
        if self.capture is None or self.backend is None:
            return plain
        if self._code is None and self.not_compiled is None:
            self.not_compiled = self._compile(plain, self.backend)
        return plain if self._code is None else partial(CompiledDecoder, code=self._code)

    def _compile(self, plain: type[Decoder], backend: str | Callable[..., object]) -> str | None:
        """Why it cannot be; None: it is."""
        if plain is not DirectDecoder:
            kind = self._model.config.get_text_config().model_type
            return f"the layers of {kind} run as the model's own modules; compiled are those of {', '.join(DIRECT)}"
        try:
            code = LayerCode(form_of(self._model), backend, self.say)
            if not correlate(self._model, plain, partial(CompiledDecoder, code=code)):
                return "its compiled layers give other logits"
        except Exception as error:  # a compiler fails in many ways
            return reason_of(error)
        self._code = code
        return None

    @property
    def compiled(self) -> bool:
        """Whether steps that are recorded run compiled layers."""
        return self._code is not None and self.capture is not None

    @property
    def note(self) -> str:
        """For a reader of the run."""
        return f"steps are launched from Python: {self.reason}"

    def record(self) -> dict[str, object] | None:
        """For the status of a cell; None where there is nothing to tell: on a CPU, or before a first step."""
        reason = self.reason or self._held_back
        if not self._tells or (reason is None and self.rows is None):
            return None
        return {
            "ran": "captured" if reason is None else "eager",
            "reason": reason,
            "rows": self.rows if reason is None else None,
            "exact": self.exact if reason is None else None,
            "experts_implementation": self.experts if reason is None else None,
            "compiled": self.compiled,
            "not_compiled": self.not_compiled,
            "compile_s": None if self._code is None else round(self._code.seconds, 1),
        }


def _why_eager(mode: StepsMode, model: PreTrainedModel, routers: Sequence[Router], on_gpu: bool) -> str | None:
    """What is known against recording this model's steps before one is tried."""
    if mode == "eager":
        return "steps=eager"
    if not on_gpu:
        return f"needs a CUDA device, this is {model.get_input_embeddings().weight.device}"
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return "its layers are on several devices"
    if group_of(routers) is not None:
        return "it is spread over several ranks"
    return None
