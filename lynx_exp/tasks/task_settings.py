"""How a task is asked, as lm-eval's own command line has it: examples, chat template, generation, documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lynx_exp.tasks.chat import ChatTemplate
from lynx_exp.tasks.data import HUB
from lynx_exp.tasks.task_records import TaskRequest

if TYPE_CHECKING:
    from lynx_exp.engine.requests.thoughts import ThinkEnd

FEWSHOT_SEED = 1234
"""lm-eval's own default."""
DEFAULT_MAX_NEW_TOKENS = 256
"""What lm-eval generates at most for a task that does not say."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of one setting, the first that is given counts: lm-eval's order."""
_SAMPLING = ("until", "do_sample", "temperature", "top_p", "top_k")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What a user may change of how a task is asked; what is None is as the task's definition says."""

    data: str = HUB
    """`hub`, or a file or folder (`lynx_exp.tasks.data`)."""
    revision: str | None = None
    """Of the hub's data set: branch, tag or commit."""
    num_fewshot: int | None = None
    fewshot_seed: int = FEWSHOT_SEED
    fewshot_as_multiturn: bool = True
    """With a chat template: each example is a turn of its own. lm-eval's default."""
    system_instruction: str | None = None
    chat: ChatTemplate | None = None
    temperature: float | None = None
    """0 decodes greedily."""
    top_p: float | None = None
    top_k: int | None = None
    max_gen_toks: int | None = None
    until: tuple[str, ...] | None = None
    repeats: int | None = None
    """Responses to each document."""
    think_end: ThinkEnd | None = None
    """What ends a thought in a response; None: no thoughts are looked for."""
    thinking: bool | None = None
    """As the chat template was told; None: it was told nothing."""

    def generation(self) -> dict[str, object]:
        """What changes in a definition's `generation_kwargs`."""
        given: dict[str, object] = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        if self.temperature is not None:
            given["do_sample"] = self.temperature > 0
        given["max_gen_toks"] = self.max_gen_toks
        given["until"] = None if self.until is None else list(self.until)
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """`generation_kwargs` of a request, read as lm-eval reads them."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    """0: greedy."""
    top_p: float | None
    top_k: int | None
    processing: tuple[tuple[str, object], ...] = ()
    """What else changes logits before a token is chosen."""

    @classmethod
    def of(cls, kwargs: Mapping[str, Any], where: str = "generation_kwargs.") -> Generation:
        """Sampling is asked for by `do_sample`, or, where that is not given, by a temperature above 0. ValueError,
        beginning with `where`, for what is not followed."""
        from lynx_exp.engine.requests.processing import settings_of_task

        until = kwargs.get("until") or []
        length = next((kwargs[name] for name in _LENGTHS if kwargs.get(name) is not None), DEFAULT_MAX_NEW_TOKENS)
        temperature = float(kwargs.get("temperature") or 0.0)
        sample = kwargs.get("do_sample")
        if sample and not kwargs.get("temperature"):
            temperature = 1.0 if kwargs.get("temperature") is None else 0.0
        temperature = 0.0 if sample is False else temperature
        more = {name: value for name, value in kwargs.items() if name not in (*_SAMPLING, *_LENGTHS)}
        return cls(
            until=(until,) if isinstance(until, str) else tuple(until),
            max_new_tokens=int(length),
            temperature=temperature,
            top_p=float(kwargs["top_p"]) if kwargs.get("top_p") else None,
            top_k=int(kwargs["top_k"]) if kwargs.get("top_k") else None,
            processing=settings_of_task(more, where, sampled=temperature > 0),
        )

    def request(self, doc_id: int, prompt: str) -> TaskRequest:
        """A prompt that is answered so."""
        return TaskRequest(
            doc_id=doc_id,
            prompt=prompt,
            until=self.until,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            processing=self.processing,
        )
