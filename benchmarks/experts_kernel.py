"""Experts of one decode layer on a GPU: `few_rows` checked against its definition, and timed against grouped_mm.

    python benchmarks/experts_kernel.py [--quick]

`check` and `measure` are for others to call, too. Times are of replayed CUDA graphs over several layers' weights, so
that no cache holds them. `floor` is the active experts' bytes at the card's rate of a plain copy. The last line's ratio
is grouped_mm / few_rows at 16 rows of Qwen3-30B-A3B. bf16, random weights of true shapes.

T token rows, K slots a row, E experts, D hidden size, I inner size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from benchmarks.harness import report
from lynx_exp.engine.timing.copy_rate import copy_rate
from lynx_exp.models.expert_kernels import few_rows

SHAPES = {"qwen3_30b_a3b": (128, 8, 2048, 768), "mixtral_8x7b": (8, 2, 4096, 14336)}
"""(E, K, D, I)."""
ROWS = (1, 16, 32, 64, 128, 256, 512)
LAYERS = 3
FAR = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
"""How far from float64's result, relative to its norm: some roundings to the type."""


@use_experts_implementation
class Experts(nn.Module):
    """As Qwen3-MoE's and Mixtral's."""

    def __init__(self, config: Any, E: int, D: int, I: int, dtype: torch.dtype, device: str) -> None:  # noqa: E741
        super().__init__()
        self.num_experts, self.act_fn = E, ACT2FN["silu"]
        self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * I, D, dtype=dtype, device=device) * D**-0.5, False)
        self.down_proj = nn.Parameter(torch.randn(E, D, I, dtype=dtype, device=device) * I**-0.5, False)


def gpt_oss(E: int, D: int, I: int, dtype: torch.dtype, device: str) -> Any:  # noqa: E741
    """Its clamp, biases, transposed and interleaved weights."""
    config = SimpleNamespace(
        intermediate_size=I, num_local_experts=E, hidden_size=D, swiglu_alpha=1.702, swiglu_limit=7.0
    )
    with torch.device(device):
        experts = GptOssExperts(config).to(dtype).requires_grad_(False)
    for parameter in experts.parameters():
        parameter.normal_(std=D**-0.5 if parameter.dim() == 3 else 0.1)
    return experts


def routed(T: int, K: int, E: int, D: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    weights, chosen = torch.randn(T, E, device=device).softmax(-1).topk(K)
    return torch.randn(T, D, device=device).to(dtype), chosen, (weights / weights.sum(-1, keepdim=True)).to(dtype)


def defined(experts: Any, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """`[T, D]` in float64, expert by expert."""
    result_TD = torch.zeros_like(hidden_TD, dtype=torch.float64)
    for e in experts_TK[weights_TK != 0].unique().tolist():
        t, k = ((experts_TK == e) & (weights_TK != 0)).nonzero(as_tuple=True)
        up, down = experts.gate_up_proj[e].double(), experts.down_proj[e].double()
        up, down = (up, down) if experts.is_transposed else (up.T, down.T)
        inner = hidden_TD[t].double() @ up
        made = experts._apply_gate(inner + experts.gate_up_proj_bias[e] if experts.has_bias else inner) @ down
        made = made + experts.down_proj_bias[e] if experts.has_bias else made
        result_TD.index_add_(0, t, made * weights_TK[t, k, None].double())
    return result_TD


@torch.inference_mode()
def check(device: str = "cuda", quick: bool = False) -> dict[str, Any]:
    """{compared, failures}: values, NaN weights of idle experts unread, a row's bits in other company, a graph captured
    once and replayed over other routings, without a wait for the device."""
    compared, failures = 0, []
    torch.manual_seed(0)
    for dtype in FAR:
        for kind, (E, K, D, I) in {"plain": (64, 8, 1024, 768), "gpt_oss": (32, 4, 720, 336)}.items():  # noqa: E741
            made = Experts(SimpleNamespace(), E, D, I, dtype, device) if kind == "plain" else None
            experts = made or gpt_oss(E, D, I, dtype, device)
            for T in (1, 16, 256) if quick else ROWS:
                given = routed(T, K, E, D, dtype, device)
                for found in _faults(experts, given, FAR[dtype]):
                    failures.append(f"{kind} {dtype} T {T}: {found}")
                compared += 4
    return {"compared": compared, "failures": failures}


def _faults(experts: Any, given: tuple[Tensor, Tensor, Tensor], far: float) -> list[str]:
    hidden, chosen, weights = given
    found, faults = few_rows(experts, *given), []
    expected = defined(experts, *given)
    if not float((found - expected).norm() / expected.norm()) <= far:  # NaN is a fault, too
        faults.append("values differ from the definition")
    if len(hidden) > 1:
        others, their_experts, their_weights = (part.roll(1, 0).clone() for part in given)
        others[0], their_experts[0], their_weights[0] = hidden[0], chosen[0], weights[0]
        if not torch.equal(few_rows(experts, others, their_experts, their_weights)[0], found[0]):
            faults.append("a row's bits depend on the others")
    dead = int(chosen[0, 0])
    less = torch.where(chosen == dead, torch.zeros_like(weights), weights)
    expected, kept = few_rows(experts, hidden, chosen, less), experts.down_proj[dead].clone()
    experts.down_proj[dead] = torch.nan
    if not torch.equal(few_rows(experts, hidden, chosen, less), expected):
        faults.append("an idle expert was read")
    experts.down_proj[dead] = kept
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        few_rows(experts, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = few_rows(experts, *given)
    chosen.copy_((chosen + 1) % experts.num_experts)
    graph.replay()
    if not torch.equal(captured, few_rows(experts, *given)):
        faults.append("a replayed graph differs")
    return faults


@torch.inference_mode()
def measure(device: str = "cuda", rows: Sequence[int] = ROWS) -> Iterator[dict[str, Any]]:
    """Microseconds a layer of each shape and number of rows, as they come: few_rows, grouped_mm, and the floor."""
    rate = copy_rate(torch.device(device)) * 1e9
    for name, (E, K, D, I) in SHAPES.items():  # noqa: E741
        layers = [Experts(SimpleNamespace(), E, D, I, torch.bfloat16, device) for _ in range(LAYERS)]
        for T in rows:
            given = routed(T, K, E, D, torch.bfloat16, device)
            active = len(given[1].unique())
            case: dict[str, Any] = {"shape": name, "rows": T, "active": active}
            case["floor_us"] = active * 3 * D * I * 2 / rate * 1e6
            for way, run in (("few_rows", few_rows), ("grouped_mm", ALL_EXPERTS_FUNCTIONS["grouped_mm"])):
                case[f"{way}_us"] = _layer_us(run, layers, given)
            yield case
        del layers


def _layer_us(run: Callable[..., Tensor], layers: list[Experts], given: tuple[Tensor, Tensor, Tensor]) -> float:
    return replayed_us(lambda: [run(layer, *given) for layer in layers]) / len(layers)


def replayed_us(run: Callable[[], Any], replays: int = 15) -> float:
    """Median of a captured graph's replays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(replays + 3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/experts_kernel.py: torch sees no GPU on this machine; nothing was run")
    checked = check(quick=arguments.quick)
    print(f"{checked['compared']} comparisons, {len(checked['failures'])} failures", *checked["failures"], sep="\n  ")
    cases = []
    for case in measure(rows=(1, 16, 64) if arguments.quick else ROWS):
        cases.append(case)
        print("  ".join(f"{k} {v:.0f}" if isinstance(v, float) else f"{k} {v}" for k, v in case.items()), flush=True)
    headline = next(case for case in cases if case["shape"] == "qwen3_30b_a3b" and case["rows"] == 16)
    ratio = headline["grouped_mm_us"] / headline["few_rows_us"]
    report("experts_kernel", 1.3, headline | {"ratio": ratio, "low": ratio, "high": ratio}, cases)
    sys.exit(bool(checked["failures"]))


if __name__ == "__main__":
    main()
