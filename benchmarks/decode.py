"""Our decode against transformers' own `generate`: same loaded model, prompts, lengths and tokens.

    python benchmarks/decode.py [--model lynx_tiny] [--repeats 7] [--new-tokens 48]

Time per output token of a call: (time for N new tokens - time for 1) / (N - 1), so that prefill and set-up cancel.
EOS is ignored on both sides. Two rows a batch size: prompts as they come (padded), one prompt repeated (no padding).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from harness import interleave, paired_ratio, report

from lynx_exp import Engine
from lynx_exp.tasks.mini import held_out

GOAL = 1.5
"""At batch 1 (DESIGN: never slower at any batch)."""


def sides(engine: Engine, prompts: list[str], new_tokens: int) -> dict[str, Callable[[int], list[list[int]]]]:
    """name -> function from a number of new tokens to the tokens of each prompt."""
    batch = engine.tokenizer(prompts, return_tensors="pt", padding=True).to(engine.device)
    engine.model.generation_config.eos_token_id = (
        None  # generate would take a None of its arguments for "as configured"
    )
    width = batch["input_ids"].shape[1]

    def ours(n: int) -> list[list[int]]:
        return engine.generate(prompts, batch_size=len(prompts), max_new_tokens=n, ignore_eos=True).token_ids

    def theirs(n: int) -> list[list[int]]:
        with torch.inference_mode():
            out = engine.model.generate(**batch, max_new_tokens=n, do_sample=False)
        return out[:, width:].tolist()

    return {"ours": ours, "generate": theirs}


def measure(engine: Engine, prompts: list[str], new_tokens: int, repeats: int) -> dict[str, float | int | str]:
    both = sides(engine, prompts, new_tokens)
    same = sum(a == b for a, b in zip(both["ours"](new_tokens), both["generate"](new_tokens), strict=True))
    subjects = {f"{name} {n}": (lambda run=run, n=n: run(n)) for name, run in both.items() for n in (1, new_tokens)}
    seconds = interleave(subjects, repeats)
    tpot_ms = {
        name: [
            (long - short) / (new_tokens - 1) * 1e3
            for long, short in zip(seconds[f"{name} {new_tokens}"], seconds[f"{name} 1"], strict=True)
        ]
        for name in both
    }
    ratio, low, high = paired_ratio(tpot_ms["generate"], tpot_ms["ours"])
    middle = {name: sorted(values)[len(values) // 2] for name, values in tpot_ms.items()}
    return {
        "batch": len(prompts),
        "ours_ms": middle["ours"],
        "generate_ms": middle["generate"],
        "ratio": ratio,
        "low": low,
        "high": high,
        "same_tokens": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lynx_tiny", help="lynx_tiny, a folder or a hub id")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=48)
    arguments = parser.parse_args()
    engine = Engine.from_pretrained(arguments.model)
    texts = [item.prompt for item in held_out("mini_gsm8k")]
    print(f"{arguments.model} on {engine.device}, {engine.dtype}, {torch.get_num_threads()} threads")
    print(f"{'batch':>5} {'prompts':>9} {'ours ms':>8} {'generate ms':>11} {'ratio':>6} {'95 %':>13}  same tokens")
    cases = []
    for batch in arguments.batches:
        for kind, prompts in (("padded", texts[:batch]), ("equal", texts[:1] * batch)):
            if batch == 1 and kind == "padded":
                continue
            case = measure(engine, prompts, arguments.new_tokens, arguments.repeats) | {"prompts": kind}
            cases.append(case)
            print(
                f"{batch:>5} {kind:>9} {case['ours_ms']:>8.2f} {case['generate_ms']:>11.2f} {case['ratio']:>6.2f} "
                f"[{case['low']:.2f}, {case['high']:.2f}]  {case['same_tokens']}/{batch}"
            )
    report("decode", GOAL, next(c for c in cases if c["batch"] == min(arguments.batches)), cases)


if __name__ == "__main__":
    main()
