"""Teacher-forced decode against step-by-step decode of the same tokens, and against a plain forward pass over them.

    python benchmarks/teacher_forced.py [--requests 64] [--repeats 5]

Log-likelihoods of vanilla's own responses under a decode-phase policy, in lanes of 1, 4, 16 and 64.

    forced      engine.score_lanes, from nothing: prompts included
    stepwise    the same lanes one after the other, a decode step a token, given tokens fed; experts computed in the way
                that is fastest for steps
    floor       the model's own forward pass over the same tokens (prompts and responses padded together, as many rows a
                pass as `forced` has), and their log-softmax; nothing attached

The last line's ratio is stepwise / forced at batch 4, whose goal is 12; at 16 it is 7, and forced / floor is to be 1.15
at most.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from harness import interleave, paired_ratio, report

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.fastest import using_experts
from lynx_exp.engine.slot_batch import SlotBatch
from lynx_exp.models import Attachment
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


@torch.inference_mode()
def stepwise(engine: Engine, requests: list[Request], plan: BatchPlan, policy: Policy) -> list[float]:
    totals = [0.0] * len(requests)
    with using_experts(engine.model, "per_expert" if engine.device.type == "cpu" else None):
        for lane in plan.lanes:
            mine = [requests[number] for number in lane]
            longest = max(len(request.continuation_ids) for request in mine)
            padded, lengths = right_padded(engine, mine)
            batch = SlotBatch(engine.model, engine._make_decoder(), [request.prompt_ids for request in mine], longest)
            logits, logprob = batch.prefill(), torch.zeros(len(mine), device=engine.device)
            with Attachment(engine.routers, policy) as attachment:
                for step in range(longest):
                    chosen = logits.log_softmax(-1).gather(-1, padded[:, step : step + 1])[:, 0]
                    logprob += chosen.where(step < lengths, 0.0)
                    if step + 1 < longest:
                        attachment.rows = batch.step_rows(step + 1 < lengths)
                        logits = batch.step(padded[:, step])
            for number, value in zip(lane, logprob.tolist(), strict=True):
                totals[number] = value
    return totals


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
    print("batch  forced s stepwise s  floor s    stepwise / forced      forced / floor  |dlogp|")
    cases = []
    for batch in arguments.batches:
        plan = BatchPlan.in_order(len(requests), batch)

        def forced(plan: BatchPlan = plan) -> list[float]:
            engine._stores.clear()  # prompts anew each time
            lanes = engine.score_lanes(requests, plan, policy)
            found = {n: x for lane in lanes for n, x in zip(lane.requests, lane.logprobs or [], strict=True)}
            return [found[number] for number in range(len(requests))]

        def steps(plan: BatchPlan = plan) -> list[float]:
            return stepwise(engine, requests, plan, policy)

        apart = max(abs(a - b) for a, b in zip(forced(), steps(), strict=True))
        seconds = interleave(
            {"forced": forced, "stepwise": steps, "floor": lambda plan=plan: floor(engine, requests, plan)},
            arguments.repeats,
        )
        ratio, low, high = paired_ratio(seconds["stepwise"], seconds["forced"])
        above, above_low, above_high = paired_ratio(seconds["forced"], seconds["floor"])
        case = {
            "batch": batch,
            **{f"{name}_s": statistics.median(times) for name, times in seconds.items()},
            "ratio": ratio,
            "low": low,
            "high": high,
            "goal": GOALS.get(batch),
            "over_floor": above,
            "over_floor_low": above_low,
            "over_floor_high": above_high,
            "over_floor_goal": GOAL_FLOOR,
            "largest_difference": apart,
        }
        cases.append(case)
        print(
            f"{batch:>5} {case['forced_s']:>9.3f} {case['stepwise_s']:>10.2f} {case['floor_s']:>8.3f} "
            f"{ratio:>7.2f} [{low:5.2f},{high:5.2f}] {above:>6.2f} [{above_low:.2f},{above_high:.2f}] {apart:.1e}"
        )
    headline = next((case for case in cases if case["batch"] == 4), cases[0])
    report("teacher_forced", GOALS[4], headline, cases)


if __name__ == "__main__":
    main()
