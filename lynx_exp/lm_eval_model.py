"""Makes this engine, with any policy, a model of lm-eval's own command line:

lm_eval --model lynx --model_args pretrained=lynx_tiny,policy=lynx,alpha=3,beta=2,decode_batch=16 --tasks gsm8k

lm-eval builds the requests and computes the scores; the responses are those of a cell of `lynx-exp` with the same
settings. Installing the package registers the model with `lm_eval` (`lm_eval_hook`); where that does not work,
`python -m lynx_exp.lm_eval_model --model lynx ...` is the same command.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from lm_eval.api.model import LM, TemplateLM
from tqdm import tqdm

from lynx_exp.config import (
    BATCHINGS,
    CHOICES,
    MIXINGS,
    PHASES,
    SCORINGS,
    TAILS,
    TRUNCATES,
    at_least,
    one_of,
)
from lynx_exp.lm_eval_arguments import Arguments, device_of, layers_of, policy_of, read_argument, sandbox_of
from lynx_exp.run.encode import encode_requests
from lynx_exp.tasks.lm_eval_code import run_code_in
from lynx_exp.tasks.task_records import TaskRequest
from lynx_exp.tasks.task_settings import Generation
from lynx_exp.tasks.thinking import find_think_end

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

    from lynx_exp.engine import BatchPlan, LaneResult, Request, Scoring
    from lynx_exp.routing import Phases
    from lynx_exp.tasks.task import EvalTask

log = logging.getLogger("lm_eval.lynx")

DECODE_BATCH = 16
"""The lane width if neither `decode_batch` nor lm-eval's `--batch_size` gives a number."""
Kind = Literal["generate", "choice"]


@dataclass(frozen=True)
class EncodableTask:
    """The requests of one lm-eval task, with the attributes that `encode_requests` needs."""

    name: str
    kind: Kind
    requests: tuple[TaskRequest, ...]
    fillers: tuple[TaskRequest, ...] = ()


class LynxLM(LM):
    """A model of lm-eval that runs requests in lanes, under a policy."""

    chat_template = TemplateLM.chat_template

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        revision: str | None = None,
        policy: str = "vanilla",
        phases: Phases = "decode",
        layers: str | int | Sequence[int] | None = None,
        decode_batch: int | None = None,
        batching: str = "auto",
        waves: int = 4,
        tail: str = "filler",
        choices: str = "spread",
        mixing: str = "separate",
        seed: int = 0,
        scoring: Scoring = "decode",
        truncate: str = "left",
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | Mapping[str, int | str] | None = None,
        experts_implementation: str = "auto",
        trust_remote_code: bool = False,
        allow_partial: bool = False,
        max_rows: int = 256,
        memory_gib: float | None = None,
        chat_template_args: Arguments | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        sandbox: str = "auto",
        confirm_unsafe_code: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **parameters: object,
    ) -> None:
        """Load the model. Arguments that are not listed here have the meaning that they have in `lynx-exp`.

        Args:
            pretrained: lynx_tiny, a folder or a hub id.
            decode_batch: Rows of a lane: requests that the policy sees together.
            mixing: separate (a lane has requests of one task, so that scores do not depend on the other tasks of the
                call) or shuffled.
            batch_size: lm-eval's option; a number is the default of `decode_batch`.
            max_batch_size: lm-eval's option, which has no effect.
            device: lm-eval's option.
            parameters: Parameters of the policy; `policy.NAME` if this model has an argument NAME as well.

        Raises:
            ValueError: An argument is unknown or does not fit; the message is one line.
        """
        super().__init__()
        from lynx_exp.engine import Engine
        from lynx_exp.routing import layer_range

        if not pretrained:
            raise ValueError("pretrained: missing; give --model_args pretrained=lynx_tiny, a folder or a hub id")
        one_of("phases", phases, PHASES)
        one_of("batching", batching, BATCHINGS)
        one_of("tail", tail, TAILS)
        one_of("choices", choices, CHOICES)
        one_of("mixing", mixing, MIXINGS)
        one_of("scoring", scoring, SCORINGS)
        one_of("truncate", truncate, TRUNCATES)
        own = [name for name in inspect.signature(LynxLM.__init__).parameters if name not in ("self", "parameters")]
        self._policy = policy_of(policy, parameters, own)
        if decode_batch is None:
            option = str(batch_size)  # lm-eval also allows auto and auto:N
            decode_batch = int(option) if option.isdigit() else DECODE_BATCH
        at_least("decode_batch", decode_batch, 1)
        at_least("waves", waves, 1)
        self.decode_batch, self.batch_sizes = decode_batch, {"decode_batch": decode_batch}
        self._waves, self._mixing, self._seed = waves, mixing, seed
        self._tail, self._choices = tail, choices
        self._scoring, self._truncate, self._revision = scoring, truncate, revision
        self._phases, self._layers = phases, layers_of(layers)
        self._chat = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._chat["enable_thinking"] = enable_thinking
        self._thinking = enable_thinking
        run_code_in(sandbox_of(sandbox, confirm_unsafe_code))
        self._engine = Engine.from_pretrained(
            pretrained,
            dtype=dtype,
            device=device_of(device) if device_map is None else "auto",
            revision=revision,
            experts_implementation=experts_implementation,
            trust_remote_code=trust_remote_code,
            allow_partial=allow_partial,
            device_map=device_map,
            max_rows=max_rows,
            memory_gib=memory_gib,
        )
        self._think_end = None
        if think_end_token is not None:
            marker, opened = str(think_end_token), enable_thinking is not False
            self._think_end = find_think_end(self.tokenizer, marker, opened=opened, name="think_end_token")
        if self._engine.partial is not None:
            log.warning(f"allow_partial: {self._engine.partial}: what this model answers says nothing about it")
        # refuses a policy that does not fit this model now, before any request
        self._engine.act(self._policy, self._phases, self._layers)
        if self._layers is not None:
            layer_range(self._layers, self._engine.num_layers)
        self._batching = self._engine.batching(batching, log.warning)
        self._active: list[float] = []  # mean active experts of each call of lm-eval
        if self._policy is not None and decode_batch < self._policy.min_batch:
            log.warning(
                f"decode_batch={decode_batch}: {policy} leaves lanes of fewer than {self._policy.min_batch} rows "
                "as they are, so this is vanilla; give decode_batch=N or --batch_size N"
            )

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Arguments, additional_config: Arguments | None = None) -> LynxLM:
        """Called by lm-eval. `arg_dict` (--model_args) takes precedence over lm-eval's options, `additional_config`."""
        options: dict[str, Any] = {key: value for key, value in (additional_config or {}).items() if value is not None}
        return cls(**options | {name: read_argument(value) for name, value in arg_dict.items()})

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Arguments | None = None) -> LynxLM:
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._engine.tokenizer

    @property
    def device(self) -> torch.device:
        return self._engine.device

    @property
    def max_length(self) -> int | None:
        return self._engine.context_length

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def set_cache_hook(self, cache_hook: object) -> None:
        """Warn about lm-eval's response cache: cached requests leave the lanes, which changes the other responses."""
        log.warning("--use_cache: what it answers is left out of the lanes, which changes the responses of the others")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        from lynx_exp.tasks.chat import ChatTemplate

        return ChatTemplate.of(self.tokenizer, self._chat)(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, object]:
        """Settings that lm-eval writes into the `config` of results.json."""
        engine, policy = self._engine, self._policy
        return {
            "model_num_parameters": engine.model.num_parameters(),
            "model_dtype": str(engine.dtype).removeprefix("torch."),
            "model_revision": self._revision or "main",
            "lynx_exp": {
                "policy": "vanilla" if policy is None else policy.label,
                "phases": "none" if policy is None else self._phases,
                "layers": self._layers,
                "decode_batch": self.decode_batch,
                "batching": self._batching,
                "waves": self._waves if self._batching == "continuous" else None,
                "tail": self._tail if self._batching == "continuous" else None,
                "choices": self._choices,
                "mixing": self._mixing,
                "scoring": self._scoring,
                "truncate": self._truncate,
                "seed": self._seed,
                "experts_implementation": engine.experts_implementation,
                "partial": engine.partial,
                "active_experts": self._active,
            },
        }

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        task_requests = []
        for number, request in enumerate(requests):
            prompt, kwargs = request.args
            settings = Generation.of(kwargs, f"{request.task_name or 'gen_kwargs'}: ")
            made = settings.request(number if request.doc_id is None else request.doc_id, prompt)
            task_requests.append(replace(made, subtask=request.task_name or "", think_end=self._think_end))
        longest = max((request.max_new_tokens for request in task_requests), default=0)
        if self.max_length is not None and longest >= self.max_length:
            raise ValueError(
                f"max_gen_toks={longest}: must leave room in {self.max_length} positions; --gen_kwargs max_gen_toks=N"
            )
        return [lane.texts[at] for lane, at in self._respond("generate", task_requests, disable_tqdm)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if self._thinking:  # as lm-eval's own models
            names = sorted({request.task_name or "requests" for request in requests})
            raise ValueError(
                f"enable_thinking=True: {', '.join(names)} asks for likelihoods, which leave no room for a thought"
            )
        task_requests: list[TaskRequest] = []
        for request in requests:
            prompt, continuation = request.args
            document = request.doc_id
            if document is None:  # adjacent requests with the same prompt are the choices of one document
                same = bool(task_requests) and task_requests[-1].prompt == prompt
                document = (task_requests[-1].doc_id + (not same)) if task_requests else 0
            task = request.task_name or ""
            task_requests.append(TaskRequest(doc_id=document, prompt=prompt, continuation=continuation, subtask=task))
        return [_likelihood(lane, at) for lane, at in self._respond("choice", task_requests, disable_tqdm)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError(
            "--model lynx answers tasks of generations and of choices; for rolling log-likelihoods (the perplexity of "
            "whole texts) use --model hf"
        )

    def _respond(self, kind: Kind, requests: Sequence[TaskRequest], quiet: bool) -> list[tuple[LaneResult, int]]:
        """Run requests; returns, for each in order, its lane and its position in the lane."""
        what = "generate_until" if kind == "generate" else "loglikelihood"
        results: dict[int, tuple[LaneResult, int]] = {}
        lanes = []
        with tqdm(total=len(requests), disable=quiet, desc=f"Running {what} requests") as bar:
            for numbers, lane in self._lanes(kind, requests):
                lanes.append(lane)
                for at, request in enumerate(lane.requests[: lane.own]):
                    results[numbers[request]] = lane, at
                bar.update(lane.own)
        self._note(lanes, len(requests))
        return [results[number] for number in range(len(requests))]

    def _lanes(self, kind: Kind, requests: Sequence[TaskRequest]) -> Iterator[tuple[Sequence[int], LaneResult]]:
        """Run requests in lanes.

        Yields:
            (positions, lane) as each lane completes: request i of the lane's plan is `requests[positions[i]]`.
        """
        parts: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            parts.setdefault(request.subtask if self._mixing == "separate" else "", []).append(number)
        work: list[tuple[list[int], list[Request], BatchPlan]] = []
        for name, numbers in parts.items():
            task = EncodableTask(name or "requests", kind, tuple(requests[number] for number in numbers))
            # `encode_requests` reads only what `EncodableTask` has
            encoded = encode_requests(cast("EvalTask", task), self._engine, self._truncate, self._seed)
            work.append((numbers, encoded, self._plan(task)))
        if kind == "generate":
            jobs = [
                self._engine.job(encoded, plan, self._policy, self._phases, layers=self._layers)
                for _, encoded, plan in work
            ]
            for job, lane in self._engine.run_jobs(jobs, on_note=log.warning):
                yield work[job][0], lane
            return
        if self._scoring == "prefill" and self._policy is not None and self._phases == "decode":
            log.warning("scoring=prefill has no decode step: with phases=decode the policy never acts on choices")
        for numbers, encoded, plan in work:
            for lane in self._engine.score_lanes(
                encoded, plan, self._policy, self._phases, layers=self._layers, scoring=self._scoring
            ):
                yield numbers, lane

    def _plan(self, task: EncodableTask) -> BatchPlan:
        """The batch plan of a cell without a limit. lm-eval's requests are all that there are, so lanes are filled up
        with copies of each other's requests."""
        from lynx_exp.run.batch_plan import lanes_over

        return lanes_over(
            task.requests,
            len(task.requests),
            batch_size=self.decode_batch,
            batching=self._batching,
            waves=self._waves,
            tail=self._tail,
            choices=self._choices,
            seed=self._seed,
        )

    def _note(self, lanes: Sequence[LaneResult], requests: int) -> None:
        """Log the active experts of a call, and keep them for `get_model_info`."""
        from lynx_exp.engine.decoding.match import mean_active

        steps = sum(len(lane.live_rows) for lane in lanes)
        shown = "no decode step"
        if steps:
            self._active.append(mean_active(lanes))
            shown = f"{self._active[-1]:.2f} of {self._engine.num_experts} experts active, {steps} steps"
        name = "vanilla" if self._policy is None else self._policy.label
        log.info(f"{name}: {shown}; {requests} requests in {len(lanes)} lanes of {self.decode_batch} rows")


def _likelihood(lane: LaneResult, at: int) -> tuple[float, bool]:
    assert lane.logprobs is not None and lane.greedy is not None, "a lane of choices"
    return lane.logprobs[at], lane.greedy[at]


def main() -> None:
    """lm-eval's command, with this model in its list."""
    import lm_eval.models  # noqa: F401
    from lm_eval.__main__ import cli_evaluate

    from lynx_exp.lm_eval_hook import register

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
