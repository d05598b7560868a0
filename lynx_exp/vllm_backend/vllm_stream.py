"""Decoding of many lanes in one serving engine: requests are let in so that a lane's rows share every step, and what
shared a step is checked against what the plugin saw.

vLLM schedules by itself. A lane of static batching decodes in step if all its prompts are computed in the same step,
so a lane is let in only when they fit what is left of one. Should vLLM do otherwise (a preempted request, say), the
lane is stopped, and run again with nobody beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lynx_exp.engine import Job, LaneResult, Request
from lynx_exp.engine.decoding.lane import Lane, Row, lanes_of
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.vllm_backend.host import VllmHost
from lynx_exp.vllm_plugin.plugin_settings import spec_of
from lynx_exp.vllm_plugin.record import LaneCount

if TYPE_CHECKING:
    from vllm.logprobs import Logprob


class ServedRow(Row):
    """A request in vLLM: as `Row`, or made to say its continuation."""

    def __init__(
        self, request: Request, number: int, slot: int, stopper: Stopper, filler: bool = False, *, scored: bool
    ) -> None:
        super().__init__(request, number, slot, stopper, filler)
        self.scored = scored
        self.logprob, self.greedy = 0.0, True

    def append(self, token: int, logprob: Logprob) -> None:
        """`logprob`: vLLM's of the token, where it was asked for."""
        if not self.scored:
            self.take(token)
            return
        at = len(self.tokens)
        if token != self.request.continuation_ids[at]:
            raise RuntimeError(f"request {self.number}: token {at} is not the one that it was made to say")
        self.tokens.append(token)
        self.logprob += logprob.logprob
        self.greedy &= logprob.rank == 1
        if len(self.tokens) == len(self.request.continuation_ids):
            self.finish = "scored"


class Running:
    """A lane in vLLM."""

    def __init__(self, lane: Lane, number: int, scored: bool) -> None:
        self.lane, self.number = lane, number
        self.scored = scored
        self.active: list[list[int]] = []
        self.changed: list[list[int]] = []
        self.rows: dict[str, ServedRow] = {}
        """By vLLM's name of the request; those that are not finished."""

    @property
    def decoding(self) -> int:
        """Rows that the next step decodes."""
        return sum(bool(row.tokens) for row in self.rows.values())

    @property
    def scored_rows(self) -> int:
        """Those of them that are no fillers."""
        return sum(bool(row.tokens) and not row.filler for row in self.rows.values())


class Stream:
    """One decoding of jobs; `run` it once."""

    def __init__(
        self,
        engine: VllmHost,
        jobs: Sequence[Job],
        *,
        scored: bool,
        on_step: Callable[[int, int], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._engine, self._jobs, self._scored = engine, jobs, scored
        self._on_step, self._on_note = on_step, on_note
        self._acts = list(dict.fromkeys(job.act for job in jobs))
        self._waiting = list(lanes_of(jobs, self._acts))[::-1]
        self._again: list[Lane] = []
        """Lanes that fell out of step: each is to run alone."""
        self._retried: set[tuple[int, int]] = set()
        self._running: dict[int, Running] = {}
        self._where: dict[str, Running] = {}
        for lane in self._waiting:
            self._check(lane)

    def _request(self, lane: Lane, number: int) -> Request:
        return self._jobs[lane.job].requests[number]

    def _length(self, lane: Lane, number: int) -> int:
        """Positions that a request may come to need."""
        request = self._request(lane, number)
        return len(request.prompt_ids) + (len(request.continuation_ids) if self._scored else request.max_new_tokens)

    def _reserve(self, lane: Lane) -> int:
        """Positions of the cache that the lane may come to fill, in whole blocks."""
        block = self._engine.block
        lengths = (self._length(lane, number) for number in (*lane.queue, *lane.fillers))
        return sum(-(-length // block) * block for length in sorted(lengths, reverse=True)[: lane.width])

    def _prompt_tokens(self, lane: Lane) -> int:
        return sum(len(self._request(lane, number).prompt_ids) for number in (*lane.queue, *lane.fillers)[: lane.width])

    def _static(self, lane: Lane) -> bool:
        """Whether all of its requests are there from the beginning."""
        plan = self._jobs[lane.job].plan
        return len(plan.lanes[lane.number]) == lane.width and not plan.fillers_of(lane.number)

    def _check(self, lane: Lane) -> None:
        """ValueError if the engine cannot run this lane at all."""
        engine, tokens = self._engine, self._prompt_tokens(lane)
        if lane.width > engine.max_rows:
            raise ValueError(f"batch_size={lane.width}: pack.max_rows={engine.max_rows} rows is all this engine has")
        if self._reserve(lane) > engine.cache_tokens:
            raise ValueError(
                f"lane {lane.number}: its {lane.width} requests need {self._reserve(lane)} positions of the cache, "
                f"which has {engine.cache_tokens}; raise pack.memory_gib"
            )
        if self._static(lane) and tokens > engine.step_tokens:
            raise ValueError(
                f"lane {lane.number}: its prompts have {tokens} tokens, and only what is computed in one step decodes "
                f"in step; raise vllm.max_num_batched_tokens={engine.step_tokens}"
            )

    def run(self) -> Iterator[tuple[int, LaneResult]]:
        """(number of the job, lane) for each lane as it completes."""
        try:
            self._engine.counts()  # of whoever used the engine before
            while self._waiting or self._again or self._running:
                self._admit()
                yield from self._step()
        finally:
            self._abort(list(self._where))

    def _admit(self) -> None:
        """Let lanes in while rows, cache and the tokens of this step last."""
        engine = self._engine
        tokens = engine.step_tokens - sum(running.decoding for running in self._running.values())
        rows = engine.max_rows - sum(running.lane.reserved for running in self._running.values())
        cache = engine.cache_tokens - sum(self._held(running) for running in self._running.values())
        for running in self._running.values():
            tokens -= self._enter(running)
        if not self._running and not self._waiting and self._again:
            self._open(self._again.pop())
            return
        while self._waiting and not self._alone():
            lane = self._waiting[-1]
            need = self._prompt_tokens(lane)
            if lane.width > rows or self._reserve(lane) > cache or (need > tokens and self._running):
                break
            self._waiting.pop()
            tokens, rows, cache = tokens - need, rows - lane.width, cache - self._reserve(lane)
            self._open(lane)

    def _alone(self) -> bool:
        return any((running.lane.job, running.lane.number) in self._retried for running in self._running.values())

    def _held(self, running: Running) -> int:
        block, lane = self._engine.block, running.lane
        now = sum(-(-self._length(lane, row.number) // block) * block for row in running.rows.values())
        return max(now, self._reserve(lane)) if lane.queue or lane.fillers else now

    def _open(self, lane: Lane) -> None:
        running = Running(lane, self._engine.new_lane(), self._scored)
        self._running[running.number] = running
        self._enter(running)

    def _enter(self, running: Running) -> int:
        """The next requests of a lane's queue, then fillers, into its free slots; tokens of their prompts."""
        lane, tokens = running.lane, 0
        while lane.free:
            numbers, fillers = lane.entering()
            if not numbers:
                break
            for number in numbers:
                tokens += len(self._request(lane, number).prompt_ids)
                self._submit(running, number, fillers)
        return tokens

    def _submit(self, running: Running, number: int, filler: bool) -> None:
        lane, act = running.lane, self._acts[running.lane.act]
        request, slot = self._request(lane, number), lane.free.pop(0)
        row = ServedRow(request, number, slot, self._engine.stopper, filler, scored=self._scored)
        lane.enter(row)
        where = spec_of(act.policy, act.phases, act.layers) | {
            "lane": running.number,
            "slot": slot,
            "number": lane.number,
        }
        salt = f"lane {running.number}" if act.prefills else None  # else prompts would share what a policy changed
        name = submit(self._engine, request, where, scored=self._scored, salt=salt)
        running.rows[name] = row
        self._where[name] = running

    def _step(self) -> Iterator[tuple[int, LaneResult]]:
        """One step of vLLM, and what it gave."""
        expected = {
            number: (running.decoding, len(running.rows), running.scored_rows)
            for number, running in self._running.items()
        }
        heard, finished = 0, []
        for output in self._engine.llm.llm_engine.step():
            running = self._where.get(output.request_id)
            if running is None:
                continue
            row, said = running.rows[output.request_id], output.outputs[0]
            for at, token in enumerate(said.token_ids):
                row.append(token, said.logprobs[at][token] if said.logprobs else None)
                heard += 1
            if row.finish is not None:
                finished.append(output.request_id)
        fallen = self._fallen(self._engine.counts(), expected)
        for running in self._running.values():
            for row in running.rows.values():
                if len(row.tokens) == 1:  # its prompt went through in this step, beside what others decoded
                    row.entered = len(running.lane.live_rows)
        self._abort(finished, also=True)
        for running in fallen:
            self._put_back(running)
        self._on_step(heard, len(self._where))
        for running in [running for running in self._running.values() if running.lane.is_over]:
            running.lane.cut()
            self._abort(list(running.rows))
            del self._running[running.number]
            yield running.lane.job, self._result(running)

    def _fallen(self, counts: Sequence[LaneCount], expected: dict[int, tuple[int, int, int]]) -> list[Running]:
        """Take in what the plugin saw of each lane; those that did not decode as planned. `expected`: of each lane the
        rows that were to decode, all its rows, and those of the first that are no fillers."""
        seen = {count.step.lane: count for count in counts}
        fallen = []
        for number, running in self._running.items():
            count = seen.get(number)
            live = 0 if count is None else count.step.live_rows
            decoding, rows, scored = expected[number]
            in_step = live == decoding and (count is None or count.step.repeated == 0)
            if count is not None and live:
                if self._static(running.lane):
                    in_step &= decoding == rows and count.step.first == count.step.last
                running.lane.live_rows.append(live)
                running.lane.scored_rows.append(scored)
                running.active.append(list(count.after))
                running.changed.append(list(count.changed))
            if count is not None and self._acts[running.lane.act].prefills:
                self._prefilled(running.lane, count)
            if not in_step:
                fallen.append(running)
        return fallen

    @staticmethod
    def _prefilled(lane: Lane, count: LaneCount) -> None:
        """Add what a policy that acts in prefill did there."""
        changed = torch.tensor(count.prompt_changed, dtype=torch.long)
        lane.prompt_tokens += count.step.prompt_rows
        lane.prompt_changed = changed if lane.prompt_changed is None else lane.prompt_changed + changed

    def _put_back(self, running: Running) -> None:
        """A lane whose rows did not share their steps: again, alone; a second time it is an error."""
        lane = running.lane
        key = (lane.job, lane.number)
        if key in self._retried:
            raise RuntimeError(
                f"lane {lane.number}: vLLM did not run its requests in step even alone; raise pack.memory_gib or "
                "vllm.max_num_batched_tokens"
            )
        self._retried.add(key)
        self._on_note(f"lane {lane.number}: vLLM did not run its requests in step; it runs again, alone")
        self._abort(list(running.rows))
        del self._running[running.number]
        queue = list(self._jobs[lane.job].plan.lanes[lane.number])
        fillers = list(self._jobs[lane.job].plan.fillers_of(lane.number))
        self._again.append(
            Lane(job=lane.job, number=lane.number, act=lane.act, queue=queue, width=lane.width, fillers=fillers)
        )

    def _abort(self, names: Sequence[str], also: bool = False) -> None:
        """Take requests out, those that vLLM itself has finished included."""
        if names:
            self._engine.llm.llm_engine.abort_request(list(names))
        for name in names:
            running = self._where.pop(name)
            row = running.rows.pop(name)
            if also:
                running.lane.leave(row)

    def _result(self, running: Running) -> LaneResult:
        lane = running.lane
        lane.rows = [row for row in lane.rows if row.tokens]  # a filler may have been cut in its prefill
        made = lane.result(running.active, running.changed)
        if not self._scored:
            return made
        rows = [row for row in lane.rows if isinstance(row, ServedRow)]
        return replace(
            made,
            texts=[""] * len(rows),
            thoughts=[],
            thought_tokens=[],
            logprobs=[row.logprob for row in rows],
            greedy=[row.greedy for row in rows],
        )


def submit(
    engine: VllmHost, request: Request, where: dict[str, object], *, scored: bool, salt: str | None = None
) -> str:
    """Hand a request to vLLM; its name there. `scored`: it says its continuation."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    extra: dict[str, object] = {"lynx": where}
    if scored:
        extra["lynx_forced"] = list(request.continuation_ids)
    sampling = request.sampling
    drawn: dict[str, object] = {"temperature": 0.0}
    if sampling is not None and not scored:
        drawn = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "seed": sampling.seed & (2**63 - 1),
        }
    params = SamplingParams(
        **drawn,
        max_tokens=len(request.continuation_ids) if scored else request.max_new_tokens,
        logprobs=0 if scored else None,
        ignore_eos=True,  # `Row` ends a response, as in the transformers backend
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra,
    )
    prompt: dict[str, object] = {"prompt_token_ids": list(request.prompt_ids)}
    if salt is not None:
        prompt["cache_salt"] = salt
    name = f"{where['lane']}-{where['slot']}-{next(_numbers)}"
    engine.llm.llm_engine.add_request(name, prompt, params)
    return name


_numbers = iter(range(2**62))
