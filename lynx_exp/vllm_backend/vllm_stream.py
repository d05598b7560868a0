"""Decodes many lanes in one vLLM engine, such that the rows of a lane share every decode step.

vLLM schedules requests by itself. The requests of a static lane stay together if all their prompts are computed in the
same step, so a lane is submitted only when its prompts fit into the step. After each step the counts of the plugin
show which rows really ran together. A lane that vLLM separated, by preempting a request for example, is aborted and
runs again without other lanes.
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
from lynx_exp.vllm_backend.submit_request import submit
from lynx_exp.vllm_plugin.plugin_settings import spec_of
from lynx_exp.vllm_plugin.record import LaneCount

if TYPE_CHECKING:
    from vllm.logprobs import Logprob


class ServedRow(Row):
    """A request in vLLM. It is decoded as in `Row`, or its continuation is forced and scored."""

    def __init__(
        self, request: Request, number: int, slot: int, stopper: Stopper, filler: bool = False, *, scored: bool
    ) -> None:
        super().__init__(request, number, slot, stopper, filler)
        self.scored = scored
        self.logprob, self.greedy = 0.0, True

    def append(self, token: int, logprob: Logprob) -> None:
        """Take in a token that vLLM has produced.

        Args:
            token: Its id.
            logprob: Its log-probability in nats and its rank; needed for a scored row.
        """
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
    """A lane whose requests are in vLLM, with the counts of its steps so far."""

    def __init__(self, lane: Lane, number: int, scored: bool) -> None:
        self.lane, self.number = lane, number
        self.scored = scored
        self.active: list[list[int]] = []
        self.changed: list[list[int]] = []
        self.rows: dict[str, ServedRow] = {}
        """The unfinished rows, by vLLM's request id."""

    @property
    def decoding(self) -> int:
        """Number of rows that the next step decodes; those without a token are still in prefill."""
        return sum(bool(row.tokens) for row in self.rows.values())

    @property
    def scored_rows(self) -> int:
        """Number of decoding rows that are not fillers."""
        return sum(bool(row.tokens) and not row.filler for row in self.rows.values())


class Stream:
    """Decodes or scores jobs on one engine. An instance is used once."""

    def __init__(
        self,
        engine: VllmHost,
        jobs: Sequence[Job],
        *,
        scored: bool,
        on_step: Callable[[int, int], None],
        on_note: Callable[[str], None],
    ) -> None:
        """Check that every lane fits the engine.

        Args:
            engine: The vLLM engine with its limits.
            jobs: Lanes to run, with their policies.
            scored: Whether to score the requests' continuations instead of generating.
            on_step: Called with the numbers of tokens and of unfinished rows of each step.
            on_note: Called with one line of text when a lane has to run again.

        Raises:
            ValueError: A lane does not fit; the message names the limit to raise.
        """
        self._engine, self._jobs, self._scored = engine, jobs, scored
        self._on_step, self._on_note = on_step, on_note
        self._acts = list(dict.fromkeys(job.act for job in jobs))
        self._waiting = list(lanes_of(jobs, self._acts))[::-1]
        self._again: list[Lane] = []
        """Lanes whose rows vLLM separated; each runs again, alone."""
        self._retried: set[tuple[int, int]] = set()
        self._running: dict[int, Running] = {}
        self._where: dict[str, Running] = {}
        for lane in self._waiting:
            self._check(lane)

    def _request(self, lane: Lane, number: int) -> Request:
        return self._jobs[lane.job].requests[number]

    def _length(self, lane: Lane, number: int) -> int:
        """Positions of the cache that a request needs at most."""
        request = self._request(lane, number)
        return len(request.prompt_ids) + (len(request.continuation_ids) if self._scored else request.max_new_tokens)

    def _reserve(self, lane: Lane) -> int:
        """Positions of the cache that the lane needs at most, in whole blocks."""
        block = self._engine.block
        lengths = (self._length(lane, number) for number in (*lane.queue, *lane.fillers))
        return sum(-(-length // block) * block for length in sorted(lengths, reverse=True)[: lane.width])

    def _prompt_tokens(self, lane: Lane) -> int:
        return sum(len(self._request(lane, number).prompt_ids) for number in (*lane.queue, *lane.fillers)[: lane.width])

    def _static(self, lane: Lane) -> bool:
        """Whether all requests of the lane start together, with none to refill a slot."""
        plan = self._jobs[lane.job].plan
        return len(plan.lanes[lane.number]) == lane.width and not plan.fillers_of(lane.number)

    def _check(self, lane: Lane) -> None:
        """Raise ValueError if the engine cannot run this lane even alone."""
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
        """Run all lanes.

        Yields:
            (position of the job, lane) as each lane completes.

        Raises:
            RuntimeError: vLLM separated the rows of a lane even when it ran alone.
        """
        try:
            self._engine.counts()  # discards the counts of earlier requests
            while self._waiting or self._again or self._running:
                self._admit()
                yield from self._step()
        finally:
            self._abort(list(self._where))

    def _admit(self) -> None:
        """Submit lanes as long as rows, cache positions and tokens of the next step are left."""
        engine = self._engine
        tokens = engine.step_tokens - sum(running.decoding for running in self._running.values())
        rows = engine.max_rows - sum(running.lane.reserved for running in self._running.values())
        cache = engine.cache_tokens - sum(self._held(running) for running in self._running.values())
        for running in self._running.values():
            tokens -= self._enter(running)
        if not self._running and not self._waiting and self._again:
            self._open(self._again.pop())
            return
        # a lane wider than the tokens of a step starts only if nothing else runs; `_check` has refused static ones
        while self._waiting and not self._alone():
            lane = self._waiting[-1]
            need = self._prompt_tokens(lane)
            if lane.width > rows or self._reserve(lane) > cache or (need > tokens and self._running):
                break
            self._waiting.pop()
            tokens, rows, cache = tokens - need, rows - lane.width, cache - self._reserve(lane)
            self._open(lane)

    def _alone(self) -> bool:
        """Whether a lane is running that must have no other lanes beside it."""
        return any((running.lane.job, running.lane.number) in self._retried for running in self._running.values())

    def _held(self, running: Running) -> int:
        """Positions of the cache that a running lane may still need."""
        block, lane = self._engine.block, running.lane
        now = sum(-(-self._length(lane, row.number) // block) * block for row in running.rows.values())
        return max(now, self._reserve(lane)) if lane.queue or lane.fillers else now

    def _open(self, lane: Lane) -> None:
        running = Running(lane, self._engine.new_lane(), self._scored)
        self._running[running.number] = running
        self._enter(running)

    def _enter(self, running: Running) -> int:
        """Submit requests for the lane's free slots, fillers last; returns the number of tokens of their prompts."""
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
        # a policy that acts on prompts changes their keys and values: other lanes must not reuse them
        salt = f"lane {running.number}" if act.prefills else None
        name = submit(self._engine, request, where, scored=self._scored, salt=salt)
        running.rows[name] = row
        self._where[name] = running

    def _step(self) -> Iterator[tuple[int, LaneResult]]:
        """Run one step of vLLM; yields the lanes that it completed."""
        expected = {
            number: (running.decoding, len(running.rows), running.scored_rows)
            for number, running in self._running.items()
        }
        new_tokens, finished = 0, []
        for output in self._engine.llm.llm_engine.step():
            running = self._where.get(output.request_id)
            if running is None:
                continue
            row, completion = running.rows[output.request_id], output.outputs[0]
            for at, token in enumerate(completion.token_ids):
                row.append(token, completion.logprobs[at][token] if completion.logprobs else None)
                new_tokens += 1
            if row.finish is not None:
                finished.append(output.request_id)
        separated = self._separated(self._engine.counts(), expected)
        for running in self._running.values():
            for row in running.rows.values():
                if len(row.tokens) == 1:  # this step computed its prompt; it decodes from the next one
                    row.entered = len(running.lane.live_rows)
        self._abort(finished, also=True)
        for running in separated:
            self._put_back(running)
        self._on_step(new_tokens, len(self._where))
        for running in [running for running in self._running.values() if running.lane.is_over]:
            running.lane.cut()
            self._abort(list(running.rows))
            del self._running[running.number]
            yield running.lane.job, self._result(running)

    def _separated(self, counts: Sequence[LaneCount], expected: dict[int, tuple[int, int, int]]) -> list[Running]:
        """Add the plugin's counts of a step to each lane, and find the lanes that did not decode as planned.

        Args:
            counts: What the plugin counted, of each lane with rows in the step.
            expected: For each lane, the numbers of rows to decode, of all rows, and of rows to decode without fillers.

        Returns:
            Lanes of which some rows were left out of the step, or ran in another one.
        """
        seen = {count.step.lane: count for count in counts}
        separated = []
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
                separated.append(running)
        return separated

    @staticmethod
    def _prefilled(lane: Lane, count: LaneCount) -> None:
        """Add up what a policy changed on the prompts."""
        changed = torch.tensor(count.prompt_changed, dtype=torch.long)
        lane.prompt_tokens += count.step.prompt_rows
        lane.prompt_changed = changed if lane.prompt_changed is None else lane.prompt_changed + changed

    def _put_back(self, running: Running) -> None:
        """Abort a lane whose rows were separated and queue it to run alone; the second time raises RuntimeError."""
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
        """Remove requests from vLLM and from their lanes.

        Args:
            names: vLLM's request ids; it ignores those that it has finished itself.
            also: Whether the rows also leave their slots to the next requests of their lanes.
        """
        if names:
            self._engine.llm.llm_engine.abort_request(list(names))
        for name in names:
            running = self._where.pop(name)
            row = running.rows.pop(name)
            if also:
                running.lane.leave(row)

    def _result(self, running: Running) -> LaneResult:
        lane = running.lane
        lane.rows = [row for row in lane.rows if row.tokens]  # a filler without a token was cut during its prefill
        result = lane.result(running.active, running.changed)
        if not self._scored:
            return result
        rows = [row for row in lane.rows if isinstance(row, ServedRow)]
        return replace(
            result,
            texts=[""] * len(rows),
            thoughts=[],
            thought_tokens=[],
            logprobs=[row.logprob for row in rows],
            greedy=[row.greedy for row in rows],
        )
