"""Teacher-forced decode against step-by-step decode of the same tokens, and against a plain forward pass over them.

    python benchmarks/teacher_forced.py [--requests 64] [--repeats 5]

Log-likelihoods of vanilla's own responses under a decode-phase policy, in lanes of 1, 4, 16 and 64.

    forced      engine.score_lanes
    stepwise    the same lanes one after the other, a decode step a token, given tokens fed; experts computed in the way
                that is fastest for steps
    floor       the model's own forward pass over the same tokens (prompts and responses padded together, as many rows a
                pass as `forced` has), and their log-softmax; nothing attached

A sweep prefills a prompt once for all its policies and batch sizes, so the headline leaves prompts out on both sides;
the right half includes them on both. The last line's ratio is stepwise / forced at batch 4, whose goal is 12; at 16 it
is 7, and forced / floor, prompts included, is to be 1.15 at most.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.harness import interleave, paired_ratio, report
from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.slot_batch import SlotBatch
from lynx_exp.models import Attachment
from lynx_exp.models.experts import using_experts
from lynx_exp.routing import Policy
from lynx_exp.tasks.mini import held_out

GOALS = {4: 12.0, 16: 7.0}
GOAL_FLOOR = 1.15
ROWS = 64


def answered(engine: Engine, count: int) -> list[Request]:
    """Prompts with vanilla's responses as continuations."""
    prompts = [item.prompt for item in held_out("mini_gsm8k")][:count]
    run = engine.generate(prompts, batch_size=16, max_new_tokens=64, stop=("\n\n",))
    return [
        Request(prompt_ids=engine.encode(prompt), continuation_ids=tuple(tokens))
        for prompt, tokens in zip(prompts, run.token_ids, strict=True)
    ]


def right_padded(engine: Engine, requests: list[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """(continuations `[R, T]`, their lengths `[R]`)."""
    longest = max(len(request.continuation_ids) for request in requests)
    rows = [[*r.continuation_ids, *[0] * (longest - len(r.continuation_ids))] for r in requests]
    lengths = [len(request.continuation_ids) for request in requests]
    return torch.tensor(rows, device=engine.device), torch.tensor(lengths, device=engine.device)


class Stepwise:
    """The lanes of a plan, one after the other, a decode step a token."""

    def __init__(self, engine: Engine, requests: list[Request], plan: BatchPlan, policy: Policy) -> None:
        self.engine, self.requests, self.plan, self.policy = engine, requests, plan, policy
        self.experts = "per_expert" if engine.device.type == "cpu" else None
        self.lanes: list[tuple[SlotBatch, torch.Tensor]] = []

    @torch.inference_mode()
    def prefill(self) -> None:
        self.lanes = []
        with using_experts(self.engine.model, self.experts):
            for lane in self.plan.lanes:
                mine = [self.requests[number] for number in lane]
                longest = max(len(request.continuation_ids) for request in mine)
                prompts = [request.prompt_ids for request in mine]
                batch = SlotBatch(self.engine.model, self.engine._make_decoder(), prompts, longest)
                self.lanes.append((batch, batch.prefill()))

    @torch.inference_mode()
    def decode(self) -> list[float]:
        """Log-likelihood of each request."""
        totals = [0.0] * len(self.requests)
        with using_experts(self.engine.model, self.experts):
            for lane, (batch, logits) in zip(self.plan.lanes, self.lanes, strict=True):
                padded, lengths = right_padded(self.engine, [self.requests[number] for number in lane])
                logprob = torch.zeros(len(lane), device=self.engine.device)
                batch.rewind()
                with Attachment(self.engine.routers, self.policy) as attachment:
                    for step in range(padded.shape[1]):
                        chosen = logits.log_softmax(-1).gather(-1, padded[:, step : step + 1])[:, 0]
                        logprob += chosen.where(step < lengths, 0.0)
                        if step + 1 < padded.shape[1]:
                            attachment.rows = batch.step_rows(step + 1 < lengths)
                            logits = batch.step(padded[:, step])
                for number, value in zip(lane, logprob.tolist(), strict=True):
                    totals[number] = value
        return totals

    def whole(self) -> list[float]:
        self.prefill()
        return self.decode()


@torch.inference_mode()
def floor(engine: Engine, requests: list[Request], plan: BatchPlan) -> None:
    order = [number for lane in plan.lanes for number in lane]
    for start in range(0, len(order), ROWS):
        mine = [requests[number] for number in order[start : start + ROWS]]
        whole = [[*request.prompt_ids, *request.continuation_ids[:-1]] for request in mine]
        width, kept = max(map(len, whole)), max(len(request.continuation_ids) for request in mine)
        ids = torch.tensor([[0] * (width - len(row)) + row for row in whole], device=engine.device)
        lengths = torch.tensor([len(row) for row in whole], device=engine.device)
        mask = torch.arange(width, device=engine.device) >= width - lengths[:, None]
        given = [[0] * (kept - len(r.continuation_ids)) + list(r.continuation_ids) for r in mine]
        targets = torch.tensor(given, device=engine.device)
        logits = engine.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(-1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        logits.float().log_softmax(-1).gather(-1, targets[..., None]).sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    arguments = parser.parse_args()
    engine = Engine.from_pretrained("lynx_tiny")
    policy = engine.bind(build_policy("lynx", alpha=1.0, beta=2))
    requests = answered(engine, arguments.requests)
    tokens = sum(len(request.continuation_ids) for request in requests)
    print(f"{len(requests)} responses, {tokens} tokens, {policy.label}, lynx_tiny, {torch.get_num_threads()} threads")
    print(f"{'':>5} {'prompts once for all policies':^45} | {'prompts included':^47}")
    print(
        "batch  forced s stepwise s   stepwise / forced     |  forced s stepwise s  ratio  forced / floor      |dlogp|"
    )
    cases = []
    for batch in arguments.batches:
        plan = BatchPlan.in_order(len(requests), batch)
        steps, prepared = (Stepwise(engine, requests, plan, policy) for _ in range(2))
        prepared.prefill()

        def forced(plan: BatchPlan = plan) -> list[float]:
            lanes = engine.score_lanes(requests, plan, policy)
            found = {n: x for lane in lanes for n, x in zip(lane.requests, lane.logprobs or [], strict=True)}
            return [found[number] for number in range(len(requests))]

        def from_nothing(forced: Callable[[], list[float]] = forced) -> list[float]:
            engine._stores.clear()
            return forced()

        apart = max(abs(a - b) for a, b in zip(from_nothing(), steps.whole(), strict=True))
        subjects: dict[str, Callable[[], object]] = {
            "from_nothing": from_nothing,  # before `forced`, which finds the prompts that it leaves
            "forced": forced,
            "stepwise": prepared.decode,
            "stepwise_from_nothing": steps.whole,
            "floor": partial(floor, engine, requests, plan),
        }
        seconds = interleave(subjects, arguments.repeats)
        ratio, low, high = paired_ratio(seconds["stepwise"], seconds["forced"])
        whole, whole_low, whole_high = paired_ratio(seconds["stepwise_from_nothing"], seconds["from_nothing"])
        above, above_low, above_high = paired_ratio(seconds["from_nothing"], seconds["floor"])
        case = {
            "batch": batch,
            **{f"{name}_s": statistics.median(times) for name, times in seconds.items()},
            "ratio": ratio,
            "low": low,
            "high": high,
            "goal": GOALS.get(batch),
            "ratio_from_nothing": whole,
            "ratio_from_nothing_low": whole_low,
            "ratio_from_nothing_high": whole_high,
            "over_floor": above,
            "over_floor_low": above_low,
            "over_floor_high": above_high,
            "over_floor_goal": GOAL_FLOOR,
            "largest_difference": apart,
        }
        cases.append(case)
        print(
            f"{batch:>5} {case['forced_s']:>9.3f} {case['stepwise_s']:>10.2f} {ratio:>8.2f} [{low:5.2f},{high:5.2f}]"
            f"     | {case['from_nothing_s']:>9.3f} {case['stepwise_from_nothing_s']:>10.2f} {whole:>6.2f} "
            f"{above:>6.2f} [{above_low:.2f},{above_high:.2f}] {apart:.1e}"
        )
    headline = next((case for case in cases if case["batch"] == 4), cases[0])
    report("teacher_forced", GOALS[4], headline, cases)


if __name__ == "__main__":
    main()
