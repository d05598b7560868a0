"""Our decode against transformers' own `generate`: same loaded model, prompts, lengths and tokens.

    python benchmarks/decode.py [--batches 1 16 64] [--large] [--repeats 7] [--new-tokens 48]

Time per output token of a call: (time for N new tokens - time for 1) / (N - 1), so that prefill and set-up cancel.
EOS is ignored on both sides. `--large` adds a random model of true Qwen3-30B-A3B layer shapes that exceeds every cache.

    ours      the engine as `measure` times it: slots, the direct step where it applies, the fastest way to compute
              experts
    exact     `engine.generate`, as accuracy runs decode: on a CPU every product padded to 16 rows at least, so that a
              row's bits depend on that row alone
    dynamic, static   `model.generate` with that cache, experts computed in transformers' default way

The last line's ratio is (the faster of dynamic and static) / ours at batch 1 of the bundled model; its goal is 1.5.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.harness import interleave, paired_ratio, report
from benchmarks.shapes import VOCABULARY, gib, large_engine
from lynx_exp import Engine
from lynx_exp.models.experts import using_experts
from lynx_exp.tasks.mini import held_out

GOALS = {"lynx_tiny": {1: 1.5, 16: 1.2, 64: 1.2}, "large": {1: 1.0, 16: 1.0, 64: 1.0}}
THEIR_EXPERTS = "grouped_mm"
"""transformers' default."""

Decode = Callable[[int], list[list[int]]]


def sides(engine: Engine, prompts: Sequence[Sequence[int]]) -> dict[str, Decode]:
    """name -> function from a number of new tokens to the tokens of each prompt."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=engine.device)
    mask = torch.arange(width, device=engine.device) >= width - torch.tensor(
        [len(p) for p in prompts], device=engine.device
    ).unsqueeze(1)
    # generate would take a None of its arguments for "as configured"
    engine.model.generation_config.eos_token_id = None
    engine.model.generation_config.pad_token_id = 0
    fastest, _ = engine._fastest_experts(prompts)

    @torch.inference_mode()
    def ours(count: int) -> list[list[int]]:
        with using_experts(engine.model, fastest):
            batch = engine._lane_alone(prompts, count)
            token_R = batch.prefill().argmax(-1)
            made = [token_R]
            for _ in range(count - 1):
                token_R = batch.step(token_R).argmax(-1)
                made.append(token_R)
        return torch.stack(made, 1).tolist()

    def exact(count: int) -> list[list[int]]:
        engine._stores.clear()  # prompts anew each time
        return engine.generate(prompts, batch_size=len(prompts), max_new_tokens=count, ignore_eos=True).token_ids

    def theirs(cache: str) -> Decode:
        @torch.inference_mode()
        def generate(count: int) -> list[list[int]]:
            with using_experts(engine.model, THEIR_EXPERTS):
                out = engine.model.generate(
                    input_ids=ids,
                    attention_mask=mask.long(),
                    max_new_tokens=count,
                    do_sample=False,
                    cache_implementation=cache,
                    disable_compile=True,
                )
            return out[:, width:].tolist()

        return generate

    return {"ours": ours, "exact": exact, "dynamic": theirs("dynamic"), "static": theirs("static")}


def measure(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int, repeats: int) -> dict[str, Any]:
    every = sides(engine, prompts)
    tokens = {name: decode(new_tokens) for name, decode in every.items()}
    subjects = {f"{name} {n}": (lambda run=run, n=n: run(n)) for name, run in every.items() for n in (1, new_tokens)}
    seconds = interleave(subjects, repeats)
    step_ms = {
        name: [
            (long - short) / (new_tokens - 1) * 1e3
            for long, short in zip(seconds[f"{name} {new_tokens}"], seconds[f"{name} 1"], strict=True)
        ]
        for name in every
    }
    middle = {name: statistics.median(values) for name, values in step_ms.items()}
    best = min(("dynamic", "static"), key=middle.__getitem__)
    ratio, low, high = paired_ratio(step_ms[best], step_ms["ours"])
    return {
        "batch": len(prompts),
        **{f"{name}_ms": value for name, value in middle.items()},
        "ratio": ratio,
        "low": low,
        "high": high,
        "exact_ratio": paired_ratio(step_ms[best], step_ms["exact"])[0],
        "same_tokens": sum(a == b for a, b in zip(tokens["ours"], tokens["dynamic"], strict=True)),
        "experts": engine._fastest_experts(prompts)[0],
        "decoder": engine._plain_decoder().__name__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--layers", type=int, default=1, help="of the large model")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=48)
    arguments = parser.parse_args()
    tiny = Engine.from_pretrained("lynx_tiny")
    texts = [list(tiny.encode(item.prompt)) for item in held_out("mini_gsm8k")]
    models = [("lynx_tiny", tiny, texts, arguments.new_tokens)]
    if arguments.large:
        draw = random.Random(0)
        drawn = [[draw.randrange(VOCABULARY) for _ in range(32)] for _ in range(max(arguments.batches))]
        models.append(("large", large_engine("qwen3_30b_a3b", arguments.layers), drawn, min(arguments.new_tokens, 12)))
    cases = []
    for name, engine, prompts, new_tokens in models:
        print(f"{name}: {gib(engine):.2f} GiB, {engine.dtype} on {engine.device}, {torch.get_num_threads()} threads")
        print(
            f"{'batch':>5} {'ours':>7} {'exact':>7} {'dynamic':>8} {'static':>7} ms/step   ratio  95 %    same tokens"
        )
        for batch in arguments.batches:
            case = measure(engine, prompts[:batch], new_tokens, arguments.repeats)
            goal = GOALS[name].get(batch)
            cases.append({"model": name, "goal": goal, "met": goal is None or case["ratio"] >= goal} | case)
            print(
                f"{batch:>5} {case['ours_ms']:>7.2f} {case['exact_ms']:>7.2f} {case['dynamic_ms']:>8.2f} "
                f"{case['static_ms']:>7.2f} {case['ratio']:>15.2f} [{case['low']:.2f},{case['high']:.2f}] "
                f"{case['same_tokens']:>4}/{batch}  {case['decoder']}, {case['experts']}"
            )
    report("decode", GOALS["lynx_tiny"][1], cases[0], cases)


if __name__ == "__main__":
    main()
