"""Every check and benchmark that needs a GPU, in one command; needs torch, transformers and triton, nothing else.

    python benchmarks/gpu.py [--quick]

1. The fused kernels against the torch definitions on this GPU: experts equal, weights within rounding.
2. The kernels without host synchronisation, and replayed from a CUDA graph over new logits.
3. The benchmarks of `runs`: selection, decode, teacher-forced decode, what policies cost and how much of the ideal
   speed-up they realise, on the bundled model and on layers of Qwen3-30B-A3B and Mixtral-8x7B (as many as fit), batch
   1 to 256, steps replayed as CUDA graphs and launched from Python.

Writes benchmarks/results/<the GPU's name>.json, and exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from selection import RULE, decode_step, routed

from lynx_exp.routing import Policy, RouterRule, Routing, StepContext, build_policy, kernels

HERE = Path(__file__).parent
ULP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""How far weights may be apart: K values summed in another order, then rounded to the type."""
SHAPES = [(16, 8, 2, 1), (64, 128, 8, 1), (64, 128, 8, 8), (256, 256, 8, 1), (200, 160, 6, 16), (256, 512, 8, 1)]
"""(rows, experts, top-k, lanes)."""


def policies(experts: int, top_k: int) -> list[Policy]:
    named: list[tuple[str, dict[str, Any]]] = [
        ("no_drop", {}),
        ("lynx", {}),
        ("lynx", {"alpha": 1.0, "beta": None, "bins": "continuous"}),
        ("oea", {"k0": 1}),
        ("oea", {"k0": top_k // 2, "p": 0.4, "k_max": top_k + 1, "max_rank": top_k + 2}),
        ("xshare", {"budget": max(top_k, experts // 3)}),
        ("xshare", {"budget": top_k, "score": "logit", "warm_up_for": "token"}),
        ("xshare", {"budget": top_k, "warm_up": 0, "max_batch": 8}),
        ("coverage", {}),
        ("coverage", {"tolerance": 0.05, "utility": "log", "guarantee": 1}),
        ("coverage", {"tolerance": None, "budget": max(top_k, experts // 3), "power": 1.5}),
        ("lynx_v1_latency", {"keep_experts": max(top_k, experts // 2)}),
        ("lynx_v1_accuracy", {}),
        ("random_keep", {"keep_experts": max(top_k, experts // 2)}),
        ("top_k", {"k": top_k // 2}),
        ("keep_ranks", {"ranks": top_k // 2}),
        ("top_p", {}),
        ("min_p", {}),
        ("deny_rank", {}),
        ("deny_rank", {"mode": "drop"}),
        ("reassign", {"first_rank": 1}),
    ]
    return [build_policy(name, **parameters) for name, parameters in named]


def random_step(rows: int, lanes: int, device: str) -> StepContext:
    """Some rows dead, some in a lane far from their neighbours'."""
    step = decode_step(rows, device, lanes)
    step.lane[:: max(2, rows // 5)] = lanes - 1
    step.live[torch.rand(rows, device=device) < 0.15] = False
    step.shared.clear()
    return step


def difference(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> str | None:
    """What is not equal between the kernels and the torch definition; None if nothing is."""
    with kernels.kernel("torch"):
        theirs = policy(routing, step, rule)
    with kernels.kernel("triton"):
        ours = policy(routing, step, rule)
    wrong = int((ours.experts != theirs.experts).any(-1).sum())
    if wrong:
        return f"{wrong} of {len(ours.experts)} rows have other experts"
    far = (ours.weights.double() - theirs.weights.double()).abs()
    allowed = ULP[ours.weights.dtype] * theirs.weights.double().abs() + 1e-7
    return None if (far <= allowed).all() else f"weights are up to {float(far.max()):.1e} apart"


def check_equality(device: str, shapes: Sequence[tuple[int, int, int, int]]) -> dict[str, Any]:
    compared, failures = 0, []
    for seed, (rows, experts, top_k, lanes) in enumerate(shapes):
        torch.manual_seed(seed)
        for dtype in ULP:
            logits = (torch.randn(rows, experts, device=device) * 2).to(dtype)
            step = random_step(rows, lanes, device)
            for policy in policies(experts, top_k):
                for rule in (RULE, RouterRule(renormalize=False)):
                    found = difference(policy, routed(logits, top_k, dtype), step, rule)
                    compared += 1
                    if found:
                        failures.append(f"T {rows} E {experts} K {top_k} G {lanes} {dtype} {policy.label}: {found}")
    return {"compared": compared, "failures": failures}


def check_graphs(device: str) -> dict[str, Any]:
    """Captured once, replayed over new logits; and the same calls with every synchronisation an error."""
    compared, failures = 0, []
    for rows, experts, top_k, lanes in ((16, 128, 8, 1), (128, 128, 8, 1), (64, 64, 8, 8)):
        step = random_step(rows, lanes, device)
        for policy in policies(experts, top_k):
            logits = torch.randn(rows, experts, device=device)
            with kernels.kernel("triton"):
                for _ in range(2):
                    policy(routed(logits, top_k), step, RULE)
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    policy(routed(logits, top_k), step, RULE)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    captured = policy(routed(logits, top_k), step, RULE)
            for _ in range(3):
                logits.copy_(torch.randn_like(logits) * 2)
                graph.replay()
                with kernels.kernel("torch"):
                    fresh = policy(routed(logits, top_k), step, RULE)
                compared += 1
                if not torch.equal(captured.experts, fresh.experts):
                    failures.append(f"T {rows} E {experts} G {lanes} {policy.label}: the replay differs")
    return {"compared": compared, "failures": failures}


def run_benchmark(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON of its last line, its output passed on as it comes."""
    command = [sys.executable, str(HERE / name), *arguments]
    lines = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not line.startswith("{"):
                print(line, end="", flush=True)
    if process.returncode != 0:
        return {"error": "".join(lines[-20:])}
    return json.loads(lines[-1])


def runs(quick: bool) -> list[tuple[str, str, list[str]]]:
    """(name, script, options) of each benchmark."""
    free = 0.7 * torch.cuda.mem_get_info()[0]
    found = [
        ("selection", "selection.py", ["--quick"] if quick else []),
        ("decode", "decode.py", ["--large", "--layers", "4", "--repeats", "3" if quick else "7"]),
        ("teacher_forced", "teacher_forced.py", ["--repeats", "3"]),
        ("policy_cost lynx_tiny", "policy_cost.py", ["--repeats", "9"]),
    ]
    for shape, layer_gib, most in (("qwen3_30b_a3b", 1.13, 48), ("mixtral_8x7b", 2.7, 32)):
        layers = 2 if quick else max(1, min(most, int(free / 2**30 / layer_gib)))
        common = ["--shape", shape, "--layers", str(layers), "--repeats", "5" if quick else "9"]
        batches = ["16"] if quick else ["1", "4", "16", "64", "256"]
        for graphs in ([], ["--no-graphs"]):
            kind = f"{shape} {'launched' if graphs else 'graphs'}"
            found.append((f"policy_cost {kind}", "policy_cost.py", [*common, *graphs, "--batches", *batches]))
            for batch in batches[1:] or batches:
                realised = [*common, *graphs, "--batch", batch]
                found.append((f"realised_speedup {kind} batch {batch}", "realised_speedup.py", realised))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repeats")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no GPU on this machine; nothing was run")
    import triton

    gpu = torch.cuda.get_device_name()
    result: dict[str, Any] = {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__}
    with torch.inference_mode():
        result["equality"] = check_equality("cuda", SHAPES[:3] if arguments.quick else SHAPES)
        result["graphs"] = check_graphs("cuda")
    failed = False
    for name in ("equality", "graphs"):
        failures = result[name]["failures"]
        print(f"{name}: {result[name]['compared']} comparisons, {len(failures)} failures", *failures[:20], sep="\n  ")
        failed = failed or bool(failures)
    where = HERE / "results" / (re.sub(r"\W+", "_", gpu.lower()) + ".json")
    where.parent.mkdir(exist_ok=True)
    for name, script, options in runs(arguments.quick):
        print(f"--- {name}: {script} {' '.join(options)}", flush=True)
        result[name] = run_benchmark(script, options)
        failed = failed or "error" in result[name]
        where.write_text(json.dumps(result, indent=1) + "\n")  # what is done is kept if the rest is cut off
    print(f"written: {where}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
