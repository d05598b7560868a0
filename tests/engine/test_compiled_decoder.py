"""A decoder layer is compiled once, as one graph, for all layers, policies and numbers of rows, and gives what the
plain one gives; where it cannot be, the plain one runs and the record says why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.compiled_decoder import CompiledDecoder, LayerCode, form_of
from lynx_exp.engine.decoding.decoder import DIRECT, DirectDecoder, PlainDecoder, agree
from lynx_exp.engine.decoding.graph import rerun
from lynx_exp.engine.decoding.one_buffer import fuse_projections
from lynx_exp.engine.decoding.steps import Steps
from lynx_exp.models import Attachment, find_routers
from lynx_exp.models.attach import Rows
from lynx_exp.models.tiny import tiny_model
from tests.engine.conftest import shape_of
from tests.engine.packing import run, wide_jobs
from tests.engine.test_decoder import built, decoded
from tests.routing.laws import REPRESENTATIVES, bound


class Counting:
    """A backend of torch.compile that counts; its code is that of the operations one by one."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, graph: Any, _inputs: Sequence[Any]) -> Any:
        self.compiled += 1
        return graph


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: Any, backend: Any) -> Any:
    return partial(CompiledDecoder, code=LayerCode(form_of(model), backend, lambda _text: None))


@pytest.mark.parametrize("family", DIRECT)
def test_one_graph_for_all_layers_and_rows(family: str) -> None:
    model, counting = built(family), Counting()
    kind = compiled(model, counting)
    for lengths in ([1, 5, 33, 64, 100], [7, 60], [3, 9, 20, 50, 1, 1, 1, 77]):
        ours, theirs = (decoded(model, each, lengths, 3) for each in (kind, DirectDecoder))
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5) and theirs.std() > 1e-2
    assert counting.compiled == 1
    assert agree(model, PlainDecoder, kind) and counting.compiled == 1


@torch.inference_mode()
def test_one_row_is_a_graph_of_its_own(engine: Engine) -> None:
    counting = Counting()
    code = LayerCode(form_of(engine.model), counting, lambda _text: None)
    engine_of_one = Engine(engine.model)
    engine_of_one._decoder = partial(CompiledDecoder, code=code)  # type: ignore[assignment]
    request = Request(prompt_ids=(5, 6, 7), max_new_tokens=4, ignore_eos=True)
    engine_of_one.auto_experts = False
    engine.model.set_experts_implementation("batched_mm")
    try:
        (ours,) = run(engine_of_one, [engine_of_one.job([request], BatchPlan.static(1, 1))]).values()
        (theirs,) = run(engine, [engine.job([request], BatchPlan.static(1, 1))]).values()
    finally:
        engine.model.set_experts_implementation("per_expert_exact")
    assert ours == theirs and counting.compiled == 1 and code.seconds > 0


def within(attachment: Attachment, kind: Any) -> Any:
    """The decoder, with the policy attached for the length of a step."""

    class Attached:
        def __init__(self, *given: Any) -> None:
            self.inner = kind(*given)

        def step(self, token_R: torch.Tensor) -> torch.Tensor:
            with attachment:
                return self.inner.step(token_R)

    return Attached


def test_every_policy_runs_in_the_same_graph(engine: Engine) -> None:
    """Its selection is an opaque operation of the layer; so is a model without any."""
    counting, routers = Counting(), find_routers(engine.model)
    kind = compiled(engine.model, counting)
    rows = Rows(
        decode=torch.ones(8, dtype=torch.bool),
        lane=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        live=torch.tensor([True] * 5 + [False] * 3),
        num_lanes=2,
        key=torch.tensor([3, 4]),
        row=torch.arange(8),
        phase="decode",
    )
    seen = []
    for policy in [None, *REPRESENTATIVES]:
        attachment = Attachment(routers, policy and bound(policy, shape_of(engine)))
        attachment.rows = rows
        both = (within(attachment, each) for each in (kind, DirectDecoder))
        ours, theirs = (decoded(engine.model, each, [3, 9, 20, 50, 1], 2) for each in both)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
        seen.append(theirs)
    assert counting.compiled == 1
    assert sum(not torch.equal(each, seen[0]) for each in seen) > 8


def steps_of(engine: Engine, backend: Any) -> Steps:
    steps = engine.steps = Steps("auto", engine.model, engine.routers)
    steps.record_with(rerun)
    steps.backend, steps.always_leads, engine.max_rows = backend, True, 16
    return steps


def asked(engine: Engine) -> list[Any]:
    requests = [Request(prompt_ids=tuple(range(3, 5 + 3 * n)), max_new_tokens=3 + n % 4) for n in range(10)]
    return wide_jobs(engine, requests, of=4)


def test_a_recorded_stream_of_compiled_layers() -> None:
    engine = Engine.from_pretrained("lynx_tiny")
    launched, said = run(engine, asked(engine)), list[str]()
    steps, counting = steps_of(engine, None), Counting()
    steps.backend, steps.say = counting, said.append
    assert run(engine, asked(engine)) == launched
    assert counting.compiled == 1 and len(said) == 1
    told = steps.record()
    assert told is not None and told["ran"] == "captured" and told["compiled"] and told["not_compiled"] is None
    assert told["compile_s"] >= 0 and told["exact"]
    timing = engine.measure([range(3, 20), range(4, 30)], batch_size=2, policies={}, new_tokens=2, repeats=2)  # type: ignore[arg-type]
    assert timing.graphed and timing.compiled and counting.compiled == 1


def _fails(_graph: Any, _inputs: Any) -> Any:
    raise NotImplementedError("no compiler here")


def _errs(graph: Any, _inputs: Any) -> Any:
    def run(*given: Any) -> Any:
        return tuple(each.roll(1, -1) for each in graph(*given))

    return run


@pytest.mark.parametrize(("backend", "reason"), [(_fails, "no compiler here"), (_errs, "give other logits")])
def test_what_does_not_compile_is_recorded_as_it_is(backend: Any, reason: str) -> None:
    engine = Engine.from_pretrained("lynx_tiny")
    launched = run(engine, asked(engine))
    steps = steps_of(engine, backend)
    assert run(engine, asked(engine)) == launched
    told = steps.record()
    assert told is not None and told["ran"] == "captured" and not told["compiled"]
    assert reason in str(told["not_compiled"])


def test_other_families_say_that_they_run_their_own_modules() -> None:
    engine = Engine(tiny_model("granitemoe"))
    steps = steps_of(engine, Counting())
    run(engine, asked(engine))
    told = steps.record()
    assert told is not None and told["ran"] == "captured" and "layers of granitemoe run as" in str(told["not_compiled"])


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe"])  # without and with biases
def test_projections_share_one_buffer_that_is_the_models_own(family: str) -> None:
    model = built(family)
    attention = model.model.layers[0].self_attn
    parts = [getattr(attention, f"{name}_proj") for name in "qkv"]
    before = [part.weight.clone() for part in parts]
    whole, bias = fuse_projections(attention)
    assert torch.equal(whole, torch.cat(before)) and (bias is None) == (parts[0].bias is None)
    storage = whole.untyped_storage()
    for part, weight in zip(parts, before, strict=True):
        assert torch.equal(part.weight, weight) and part.weight.untyped_storage().data_ptr() == storage.data_ptr()
    assert storage.nbytes() == sum(weight.nbytes for weight in before), "nothing is held twice"
    with torch.no_grad():
        parts[1].weight.fill_(2.0)  # other weights, in place, are seen
    again, _ = fuse_projections(attention)
    assert again.data_ptr() == whole.data_ptr() and bool((again[before[0].shape[0] :][: before[1].shape[0]] == 2).all())
    assert not again.is_inference()


def test_projections_that_are_no_plain_linear_layers_are_refused() -> None:
    attention = built("mixtral").model.layers[0].self_attn

    class Quantised(nn.Linear):
        """Keeps its weights in another form."""

    attention.k_proj = Quantised(64, 32, bias=False)
    with pytest.raises(ValueError, match="no plain linear layers .*Quantised"):
        fuse_projections(attention)


@pytest.mark.slow  # a C++ compiler runs
@pytest.mark.parametrize("family", DIRECT)
def test_inductors_code_agrees(family: str) -> None:
    model = built(family)
    kind = compiled(model, "inductor")
    ours, theirs = (decoded(model, each, [1, 5, 33], 3) for each in (kind, DirectDecoder))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-4)
