"""`few_rows` under Triton's interpreter equals the modules' own loops, reads nothing for idle experts and slots of
weight 0, and treats every row alike; the last test compiles it for real devices.

T token rows, K slots a row, E experts, D hidden size, I inner size.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from lynx_exp.models.expert_kernels import FEW_ROWS, MOST_ROWS, few_rows, refusal, require
from lynx_exp.models.expert_kernels.gates import ACTIVATIONS, Form, form_of
from lynx_exp.models.expert_kernels.modules import expert_modules, served
from lynx_exp.models.expert_kernels.tile_sizes import tiles
from lynx_exp.models.odd_families.forms import ROUTERLESS
from lynx_exp.models.routers import router_classes
from lynx_exp.models.tiny import tiny_model

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ["TRITON_INTERPRET"] != "1", reason="on a card benchmarks/experts_kernel.py compares them"
)

ELEMENTWISE = sorted(set(ACT2FN) - {"prelu", "xielu"})
"""Of transformers' activations; the others have weights of their own."""
ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 2.0**-5, torch.float16: 2.0**-9}
"""How far from float32's result, relative to its largest: some roundings to the type."""


class Layout(NamedTuple):
    gate: str
    """none, side (by side) or turns (one after the other)."""
    transposed: bool
    bias: bool
    activation: str
    limit: float | None
    """With one: gpt-oss's clamps and its (up + 1)."""


LAYOUTS = st.builds(
    Layout,
    gate=st.sampled_from(["none", "side", "turns"]),
    transposed=st.booleans(),
    bias=st.booleans(),
    activation=st.sampled_from(ELEMENTWISE),
    limit=st.sampled_from([None, 0.7]),
)


def make(layout: Layout, E: int = 5, D: int = 40, I: int = 24, seed: int = 0) -> Any:  # noqa: E741
    """An experts module of transformers' kind in that layout, its weights drawn."""

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts, width = E, I if layout.gate == "none" else 2 * I
            name, draw = "up_proj" if layout.gate == "none" else "gate_up_proj", torch.Generator().manual_seed(seed)
            shapes = {name: (width, D), "down_proj": (D, I)}
            for part, (out, into) in shapes.items():
                shape = (E, into, out) if layout.transposed else (E, out, into)
                setattr(self, part, nn.Parameter(torch.randn(shape, generator=draw) * 1.5 * into**-0.5))
                if layout.bias:
                    setattr(self, f"{part}_bias", nn.Parameter(torch.randn(E, out, generator=draw)))
            self.act_fn = ACT2FN[layout.activation]
            self.limit = layout.limit

        def _apply_gate(self, values: Tensor) -> Tensor:
            gate, up = values.chunk(2, -1) if layout.gate == "side" else (values[..., ::2], values[..., 1::2])
            if layout.limit is None:
                return self.act_fn(gate) * up
            return (up.clamp(-layout.limit, layout.limit) + 1) * self.act_fn(gate.clamp(max=layout.limit))

        def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            """Slot by slot."""
            made = torch.zeros_like(hidden)
            for t, k in torch.cartesian_prod(torch.arange(len(chosen)), torch.arange(chosen.shape[1])).tolist():
                if (e := int(chosen[t, k])) < self.num_experts and weights[t, k] != 0:
                    inner = self._product("gate_up_proj" if self.has_gate else "up_proj", e, hidden[t])
                    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
                    made[t] += weights[t, k] * self._product("down_proj", e, inner)
            return made

        def _product(self, name: str, e: int, row: Tensor) -> Tensor:
            weights = getattr(self, name)[e]
            bias = getattr(self, f"{name}_bias")[e] if layout.bias else None
            return F.linear(row, weights.T if layout.transposed else weights, bias)

    kind = use_experts_implementation(
        is_concatenated=layout.gate == "side",
        is_transposed=layout.transposed,
        has_bias=layout.bias,
        has_gate=layout.gate != "none",
    )(Experts)
    return kind(SimpleNamespace(_experts_implementation="eager")).requires_grad_(False)


PLAIN = Layout("side", False, False, "silu", None)


def routed(rows: int, D: int, E: int, top_k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, experts (E: of another rank) and weights; some slots have weight 0."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, E + 1, generator=draw).argsort(-1)[:, :top_k]
    weights = torch.rand(rows, top_k, generator=draw)
    weights[torch.rand(weights.shape, generator=draw) < 0.2] = 0
    weights[chosen == E] = 0
    return torch.randn(rows, D, generator=draw), chosen, weights


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-6))


@settings(max_examples=30, deadline=None)
@given(layout=LAYOUTS, rows=st.integers(1, 9), seed=st.integers(0, 99), dtype=st.sampled_from(list(ROUNDED)))
def test_every_form_equals_the_modules_own_loop(layout: Layout, rows: int, seed: int, dtype: torch.dtype) -> None:
    experts = make(layout, D=40 if seed % 2 else 32, I=24 if seed % 3 else 32, seed=seed).to(dtype)
    hidden, chosen, weights = routed(rows, 40 if seed % 2 else 32, 5, seed=seed)
    hidden = hidden.to(dtype)
    weights = weights if seed % 5 == 0 else weights.to(dtype)  # some routers keep float32
    found = few_rows(experts, hidden, chosen, weights)
    expected = experts.float()(hidden.float(), chosen, weights.float())
    assert found.dtype == dtype
    assert apart(found, expected) <= ROUNDED[dtype]


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen3_moe", "gpt_oss", "nemotron_h", "aria_text", "minimax_m3_vl_text", "deepseek_v4"]
)
@torch.inference_mode()
def test_the_modules_of_transformers(family: str) -> None:
    """Their own gates, limits and layouts, set as a user sets it."""
    model = tiny_model(family, **({"max_position_embeddings": 4096} if family == "gpt_oss" else {}))
    if type(model).__name__ in ROUTERLESS and not router_classes(model):
        pytest.skip(ROUTERLESS[type(model).__name__])
    experts = next(expert_modules(model))
    for name, parameter in experts.named_parameters():
        parameter.normal_(std=1.0 if "bias" in name else 0.3, generator=torch.Generator().manual_seed(2))
    given = routed(6, experts.down_proj.shape[2 if experts.is_transposed else 1], 8)
    given[1].clamp_(max=7)
    model.set_experts_implementation("eager")
    expected = experts(*given)
    model.set_experts_implementation(FEW_ROWS)
    assert apart(experts(*given), expected) <= 5e-6


@pytest.mark.parametrize("rows", [1, 2, 17, 100, 512])
def test_from_1_to_512_rows(rows: int) -> None:
    """With one of two experts for most rows, so that tiles of all heights are full and not; beyond, grouped_mm."""
    experts = make(PLAIN, E=2, D=16, I=16)
    hidden, _, weights = routed(rows, 16, 4, top_k=2)
    chosen = torch.tensor([[0, 1]]).repeat(rows, 1)
    experts.config._experts_implementation = "grouped_mm"
    expected = experts(hidden, chosen, weights)
    assert apart(few_rows(experts, hidden, chosen, weights), expected) <= 2e-6


def test_many_slots_are_listed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from lynx_exp.models.expert_kernels import launch_experts as launch

    experts, given = make(PLAIN), routed(20, 40, 5)
    expected = few_rows(experts, *given)
    monkeypatch.setattr(launch, "_LIST_BLOCK", 16)
    assert torch.equal(few_rows(experts, *given), expected)


def test_more_rows_and_gradients_go_to_grouped_mm() -> None:
    experts = make(PLAIN).requires_grad_(True)
    experts.config._experts_implementation = "grouped_mm"
    given = routed(MOST_ROWS + 1, 40, 4)
    given[1].clamp_(max=4)
    with torch.no_grad():
        assert torch.equal(few_rows(experts, *given), experts(*given))
    hidden, chosen, weights = routed(3, 40, 4)
    few_rows(experts, hidden.requires_grad_(), chosen.clamp(max=4), weights).sum().backward()
    assert experts.down_proj.grad.any() and hidden.grad.any()


def test_no_rows() -> None:
    assert few_rows(make(PLAIN), *routed(0, 40, 5)).shape == (0, 40)


@pytest.mark.parametrize("layout", [PLAIN, Layout("turns", True, True, "quick_gelu", 0.7)], ids=["plain", "gpt-oss"])
def test_idle_experts_and_slots_of_weight_0_are_not_read(layout: Layout) -> None:
    """Weights of NaN at an expert whose slots all have weight 0, and at one that no row has; any weight reads them."""
    experts = make(layout, E=6)
    hidden, chosen, weights = routed(20, 40, 5)
    chosen[chosen == 5] = 0
    weights[chosen == 2] = 0
    expected = few_rows(experts, hidden, chosen, weights)
    for parameter in experts.parameters():
        parameter[[2, 5]] = torch.nan
    assert torch.equal(few_rows(experts, hidden, chosen, weights), expected)
    weights[chosen == 2] = 0.5
    found = few_rows(experts, hidden, chosen, weights)
    reads = (chosen == 2).any(-1)
    assert found[reads].isnan().all() and torch.equal(found[~reads], expected[~reads])


def test_rows_of_weight_0_are_zero_and_an_expert_may_come_twice() -> None:
    experts = make(PLAIN)
    hidden, chosen, weights = routed(6, 40, 4)
    weights[:] = 0
    assert torch.equal(few_rows(experts, hidden, chosen, weights), torch.zeros_like(hidden))
    chosen[:] = 3
    weights[2] = 0.5
    found = few_rows(experts, hidden, chosen, weights)
    assert found[2].any() and not found[[0, 1, 3, 4, 5]].any()
    assert apart(found, experts(hidden, chosen, weights)) <= 2e-6


@settings(max_examples=12, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 9))
def test_a_rows_bits_do_not_depend_on_the_others(data: st.DataObject, dtype: torch.dtype, seed: int) -> None:
    """In any order, beside other rows with other experts, at any place of a tile: for the same number of rows."""
    rows, kept = 20, data.draw(st.integers(1, 20))
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    experts = make(PLAIN, E=3, seed=seed).to(dtype)
    hidden, chosen, weights = routed(rows, 40, 3, 2, seed=seed)
    found = few_rows(experts, hidden.to(dtype), chosen, weights)
    others, their_experts, their_weights = routed(rows, 40, 3, 2, seed=seed + 100)
    if seed % 2:
        their_experts[:] = 1  # all at one expert's tiles
    mine = torch.arange(rows) < kept
    again = few_rows(
        experts,
        torch.where(mine[:, None], hidden[order], others).to(dtype),
        torch.where(mine[:, None], chosen[order], their_experts),
        torch.where(mine[:, None], weights[order], their_weights),
    )
    assert torch.equal(again[:kept], found[order][:kept])


def test_it_is_one_operation_to_a_compiler() -> None:
    experts, given = make(PLAIN), routed(5, 40, 5)
    expected = few_rows(experts, *given)
    experts.config._experts_implementation = FEW_ROWS
    compiled = torch.compile(experts, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(*given), expected)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_activation_is_recognised_by_its_values(name: str) -> None:
    form = form_of(make(PLAIN._replace(gate="none", activation=name)))
    x = torch.linspace(-9, 9, 1001)
    assert form is not None and torch.allclose(form(x[:, None])[:, 0], ACT2FN[name](x), rtol=1e-5, atol=1e-6)


def test_forms_that_are_no_other() -> None:
    assert form_of(make(PLAIN)) == Form(1, 0)
    assert form_of(make(PLAIN._replace(gate="turns", activation="relu"))) == Form(2, list(ACTIVATIONS).index("relu"))
    assert form_of(make(Layout("side", False, False, "quick_gelu", 0.7))) == Form(1, 0, 1.702, 1, 0.7, 1.0)
    step = make(PLAIN)
    step.limit = 3.0
    step._apply_gate = lambda v: F.silu(v.chunk(2, -1)[0]).clamp(max=3.0) * v.chunk(2, -1)[1].clamp(-3.0, 3.0)
    assert form_of(step) == Form(1, 0, 1.0, 2, 3.0)
    step._apply_gate = lambda v: F.silu(v.chunk(2, -1)[0]) * v.chunk(2, -1)[1].sin()
    assert form_of(step) is None


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


REFUSED = {
    "forms that the kernels know": lambda experts: setattr(experts, "act_fn", Sine()),
    "PReLU": lambda experts: setattr(experts, "act_fn", nn.PReLU()),
    "it takes one of bfloat16, float16, float32": lambda experts: experts.double(),
    "has a norm after its experts": lambda experts: setattr(experts, "has_post_expert_norm", True),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_served_is_refused_with_the_reason(reason: str) -> None:
    experts = make(PLAIN)
    REFUSED[reason](experts)
    expected = "forms that the kernels know" if reason == "PReLU" else reason
    why = refusal(nn.ModuleList([experts]), rows=2, top_k=2)
    assert why is not None and expected in why and "\n" not in why
    with pytest.raises(ValueError, match=f"^experts_implementation=few_rows: .*{expected}"):
        require(nn.ModuleList([experts]), rows=2, top_k=2)
    with pytest.raises(ValueError, match=expected):
        few_rows(experts, *routed(2, 40, 5))


def test_devices_and_compilers_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    from lynx_exp.models.expert_kernels import launch_experts as launch
    from lynx_exp.models.expert_kernels import modules

    model = nn.ModuleList([make(PLAIN)])
    assert refusal(model, rows=4, top_k=3) is None
    assert (
        refusal(nn.Linear(2, 2), rows=4, top_k=3)
        == "the model has no experts that transformers lets one choose a way for"
    )
    with monkeypatch.context() as patch:
        patch.setattr(launch, "shared_memory", lambda _device: 1000)
        assert "1000 bytes of shared memory are too few" in refusal(model, rows=4, top_k=3)
    with monkeypatch.context() as patch:

        def broken(*_: Any) -> None:
            raise RuntimeError("ptxas\nfailed")

        patch.setattr(launch, "run_experts", broken)
        assert refusal(model, rows=4, top_k=3) == "its kernels do not run here: RuntimeError: ptxas failed"
    with monkeypatch.context() as patch:
        patch.setattr(launch, "INTERPRETED", False)
        assert refusal(nn.ModuleList([make(PLAIN)]), 4, 3) == "its kernels need a CUDA device, this is cpu"
    with monkeypatch.context() as patch:
        patch.setattr(modules, "find_spec", lambda _name: None)
        assert refusal(nn.ModuleList([make(PLAIN)]), 4, 3) == "triton is not installed (pip install triton)"
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
        patch.setattr(torch.cuda, "get_device_name", lambda _device: "T4")
        assert modules.device_refusal(torch.device("cuda")) == "T4 has compute capability 7.5, 8.0 is the least"


@settings(max_examples=200, deadline=None)
@given(
    rows=st.floats(0.01, 512),
    hidden=st.integers(16, 8192),
    inner=st.integers(16, 16384),
    itemsize=st.sampled_from([2, 4]),
    shared=st.sampled_from([101_376, 166_912, 232_448]),
    gated=st.booleans(),
)
def test_every_tile_fits(rows: float, hidden: int, inner: int, itemsize: int, shared: int, gated: bool) -> None:
    found = tiles(rows, hidden, inner, itemsize=itemsize, gated=gated, shared=shared)
    for tile, wide in ((found.up, gated), (found.down, False)):
        assert tile.bytes(itemsize, wide) <= shared and tile.stages >= 2
        assert min(tile.rows, tile.columns, tile.depth) >= 16


def test_a_module_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, given = make(PLAIN), routed(2, 40, 5)
    few_rows(experts, *given)
    monkeypatch.setattr("lynx_exp.models.expert_kernels.served", lambda _experts: pytest.fail("again"))
    few_rows(experts, *given)
    assert "_lynx_few_rows" not in experts.state_dict() and served(experts).first == "gate_up_proj"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_every_kernel_compiles_for_a_gpu(arch: str) -> None:
    """In a process of its own: here the kernels are the interpreter's. Needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_experts.py")
    done = subprocess.run([sys.executable, script, arch], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
