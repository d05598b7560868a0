"""Stock vLLM, on this machine's CPU: `make test-vllm` makes the environment and runs these.

Engines stand in for one another in one process; each is started for as few tests as can be.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from lynx_exp.routing import build_policy, policy_names

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: `make test-vllm`", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # vLLM and what it imports warn about themselves

QUARTER = {"policy": "lynx_v1_latency", "keep_experts": 4}
PROMPTS = [f"Question: Tom has {3 + i} apples and buys {2 * i} more. How many?\nAnswer:" for i in range(8)]
REQUIRED = {"lynx_v1_latency": {"keep_experts": 4}, "random_keep": {"keep_experts": 5}}
POLICIES = {name: build_policy(name, **REQUIRED.get(name, {})) for name in policy_names() if name != "vanilla"}


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """One engine after another in this process."""
    from lynx_exp.vllm_backend import opening
    from lynx_exp.vllm_plugin import make_llvmlite_bearable, register

    patch = pytest.MonkeyPatch()
    for name, value in opening._VARIABLES.items():
        patch.setenv(name, value)
    patch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.set_num_threads
    register()
    make_llvmlite_bearable()
    yield
    torch.set_num_threads = threads  # vLLM replaces it
    patch.undo()


@contextmanager
def started(setting: dict[str, Any] | None, model: str = "lynx_tiny", **more: Any) -> Iterator[Any]:
    """A `vllm.LLM` with the setting."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    from lynx_exp.models import locate

    given = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "kv_cache_memory_bytes": 2**28,
        "use_tqdm_on_load": False,
    }
    extra = {} if setting is None else {"additional_config": {"lynx": setting}}
    llm = LLM(model=locate(model), **given | extra | more)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def worker_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def say(llm: Any, prompts: list[str] = PROMPTS, tokens: int = 20) -> list[list[int]]:
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, asked, use_tqdm=False)]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Mixtral, with the bundled model's tokenizer and logits far enough apart to survive bf16."""
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    from lynx_exp.models import locate

    folder = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=10240,  # `vllm bench latency` draws tokens below 10000
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        sliding_window=None,
        initializer_range=0.2,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("lynx_tiny")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stock() -> list[list[int]]:
    with started(None) as llm:
        assert not hasattr(worker_of(llm), "lynx")
        return say(llm)


# Parity.


@pytest.mark.parametrize("name", ["vanilla", "no_drop"])
def test_the_plugin_leaves_stock_tokens(name, stock):
    with started({"policy": name}) as llm:
        assert say(llm) == stock


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_mixtral_too(mixtral, dtype):
    with started(None, mixtral, dtype=dtype) as llm:
        plain = say(llm)
    with started({"policy": "no_drop"}, mixtral, dtype=dtype) as llm:
        assert say(llm) == plain


class Spy:
    """What a worker's layers were given and what they ran."""

    def __init__(self, lynx: Any) -> None:
        self.seen: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Any]] = []
        route = lynx.route

        def watched(number, width, logits, weights, experts, padded):  # noqa: PLR0913
            made = route(number, width, logits, weights, experts, padded)
            if lynx._rows is not None:
                decode = torch.from_numpy(lynx._rows.decode_T)
                self.seen.append(
                    (number, logits.clone(), weights.clone(), experts.clone(), *made, (decode, lynx._rows))
                )
            return made

        lynx.route = watched


def test_chunked_prefill_with_requests_that_come_at_all_times(capsys):
    with started(QUARTER, max_num_batched_tokens=24) as llm:
        spy = Spy(worker_of(llm).lynx)
        say(llm)
        found = llm.collective_rpc("lynx_record")[0]
    mixed, pruned, before = 0, [], []
    for _, _, weights, experts, new_weights, new_experts, (decode, _) in spy.seen:
        assert torch.equal(experts[~decode], new_experts[~decode]), "prefill rows run what the router chose"
        assert torch.equal(weights[~decode], new_weights[~decode])
        if decode.any() and (~decode).any():
            mixed += 1
            before.append(len(experts[decode].unique()))
            pruned.append(len(new_experts[decode].unique()))
    assert found["mixed_steps"] * 4 == mixed > 0 and max(pruned) <= 4 < max(before)
    with capsys.disabled():
        print(
            f"\nchunked prefill: {found['mixed_steps']} mixed and {found['decode_steps']} decode steps; decode rows of "
            f"mixed steps ran {sum(before) / len(before):.2f} -> {sum(pruned) / len(pruned):.2f} experts a layer; "
            "prefill rows unchanged"
        )


def test_every_policy_routes_as_in_the_transformers_backend_on_the_same_logits(capsys):
    """In one engine, one lane a policy: the rows of each lane, and the policy as that backend binds it."""
    from lynx_exp import Engine
    from lynx_exp.engine import BatchPlan, Request
    from lynx_exp.routing import Routing, StepContext
    from lynx_exp.vllm_backend import VllmEngine, open_llm

    other = Engine.from_pretrained("lynx_tiny", dtype="float32", device="cpu")
    engine = VllmEngine(open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=256, memory_gib=0.5))
    spy = Spy(worker_of(engine.llm).lynx)
    requests = [
        Request(prompt_ids=tuple(engine.tokenizer(prompt).input_ids), max_new_tokens=8, ignore_eos=True)
        for prompt in PROMPTS
    ]
    plan = BatchPlan.in_order(len(requests), len(requests))
    jobs = [engine.job(requests, plan, policy) for policy in POLICIES.values()]
    names = {number: name for number, name in enumerate(POLICIES)}
    active = {names[job]: lane.active_experts for job, lane in engine.run_jobs(jobs)}
    engine.close()
    checked = dict.fromkeys(POLICIES, 0)
    for number, logits, weights, experts, new_weights, new_experts, (decode, rows) in spy.seen:
        router = other.routers[number]
        for at, lane in enumerate(rows.lanes):
            mine = torch.from_numpy(rows.place_T == at) & decode
            if not mine.any():
                continue
            count, policy = int(mine.sum()), lane.acting.policy
            order = logits[mine].gather(-1, experts[mine].long()).argsort(dim=-1, descending=True, stable=True)
            given = Routing(
                logits=logits[mine].float(),
                experts=experts[mine].long().gather(-1, order),
                weights=weights[mine].gather(-1, order),
            )
            step = StepContext(
                layer=number,
                decode=torch.ones(count, dtype=torch.bool),
                lane=torch.zeros(count, dtype=torch.long),
                live=torch.ones(count, dtype=torch.bool),
                num_lanes=1,
                key=torch.tensor([int(rows.key_G[at])]),
                row=torch.from_numpy(rows.row_T)[mine],
            )
            wanted = other.bind(policy)(given, step, router.rule)
            assert as_sets(wanted.experts, wanted.weights) == as_sets(new_experts[mine], new_weights[mine]), (
                policy.label
            )
            checked[policy.name] += count
    assert all(count == 8 * 7 * 4 for count in checked.values()), checked
    means = {name: torch.tensor(each).double().mean().item() for name, each in active.items()}
    with capsys.disabled():
        print("\nactive experts a layer, 8 rows: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()))


def as_sets(experts, weights):
    return [
        sorted((int(e), round(float(w), 5)) for e, w in zip(*row, strict=True) if w != 0)
        for row in zip(experts.tolist(), weights.tolist(), strict=True)
    ]


def test_the_routing_simulator_is_a_second_way_to_the_same_tokens(monkeypatch):
    """vLLM's own registry of routing strategies, with a mask made here: nothing of the plugin takes part."""
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulator, RoutingStrategy

    from lynx_exp.routing import RouterRule, Routing, StepContext

    policy = build_policy("lynx_v1_latency", keep_experts=4)

    class Strategy(RoutingStrategy):
        def route_tokens(self, hidden_states, router_logits, top_k, indices_type=None):
            logits = router_logits.float()
            values, experts = logits.topk(top_k, -1)
            metadata = get_forward_context().attn_metadata
            if isinstance(metadata, dict):
                metadata = next(iter(metadata.values()))
            live = torch.zeros(len(logits), dtype=torch.bool)
            if metadata is not None:
                start = metadata.query_start_loc
                count = start[1:] - start[:-1]
                decodes = (count == 1) & (metadata.seq_lens[: len(count)] > 1)
                live[: int(start[-1])] = decodes.repeat_interleave(count)
            step = StepContext(
                layer=0,
                decode=live,
                lane=torch.zeros(len(logits), dtype=torch.long),
                live=live,
                num_lanes=1,
                key=torch.zeros(1, dtype=torch.long),
                row=torch.arange(len(logits)),
            )
            made = policy(Routing(logits=logits, experts=experts, weights=values.softmax(-1)), step, RouterRule())
            return made.weights, made.experts.to(indices_type or torch.int32)

    with started(QUARTER) as llm:
        own = say(llm)
    RoutingSimulator.register_strategy("lynx_test", Strategy())
    monkeypatch.setenv("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "lynx_test")
    with started(None) as llm:
        assert say(llm) == own
    with pytest.raises(ValueError, match="VLLM_MOE_ROUTING_SIMULATION_STRATEGY=lynx_test"), started(QUARTER):
        pass


SCHEMES = {
    "softmax": {},
    "softmax, not renormalised": {"renormalize": False},
    "softmax in groups": {"use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2},
    "sigmoid in groups, bias, scaled": {
        "use_grouped_topk": True,
        "num_expert_group": 4,
        "topk_group": 2,
        "scoring_func": "sigmoid",
        "e_score_correction_bias": torch.linspace(-0.2, 0.3, 16),
        "routed_scaling_factor": 2.5,
    },
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_rules_of_vllms_own_routers_are_proved(scheme):
    from vllm.model_executor.layers.fused_moe.router.router_factory import create_fused_moe_router

    from lynx_exp.vllm_plugin.layers import prove_router

    given = SCHEMES[scheme]
    router = create_fused_moe_router(top_k=4, global_num_experts=16, **given)
    rule = prove_router(router, torch.float32, torch.device("cpu"))[0]()
    assert rule.score == given.get("scoring_func", "softmax")
    assert rule.renormalize == given.get("renormalize", True)
    assert (rule.groups, rule.top_groups) == (given.get("num_expert_group", 1), given.get("topk_group", 1))
    assert rule.scaling == given.get("routed_scaling_factor", 1.0)
    assert (rule.bias is None) == ("e_score_correction_bias" not in given)


# Ways to run.


def test_a_compiled_model_says_what_an_eager_one_does(capsys):
    with started(QUARTER) as llm:
        eager, counted = say(llm), llm.collective_rpc("lynx_record")[0]
    with started(QUARTER, enforce_eager=False) as llm:
        assert say(llm) == eager
        found = llm.collective_rpc("lynx_record")[0]
    assert found == counted and max(found["experts_after"]) == 4 < min(found["experts_before"])
    with capsys.disabled():
        print(f"\ncompiled: {mean(found['experts_before']):.2f} -> {mean(found['experts_after']):.2f} experts a layer")


def mean(values):
    return sum(values) / len(values)


def run_script(body: str, folder: Path, **environment: str) -> str:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(body))
    more = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | more | environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_an_engine_in_a_process_of_its_own(tmp_path, capsys):
    said = run_script(
        f"""
        import json
        from vllm import LLM, SamplingParams
        from lynx_exp.models import locate

        if __name__ == "__main__":
            llm = LLM(model=locate("lynx_tiny"), dtype="float32", max_model_len=256, max_num_seqs=16,
                      enforce_eager=True, enable_prefix_caching=False,
                      additional_config={{"lynx": {QUARTER!r} | {{"report": "report.json"}}}})
            llm.generate({PROMPTS!r}, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), use_tqdm=False)
            print("FOUND", json.dumps(llm.collective_rpc("lynx_record")[0]))
        """,
        tmp_path,
        VLLM_ENABLE_V1_MULTIPROCESSING="1",
    )
    assert "lynx_exp: lynx_v1_latency(keep_experts=4) in 4 of 4 layers, phases=decode" in said
    found = json.loads(next(line for line in said.splitlines() if line.startswith("FOUND"))[6:])
    assert max(found["experts_after"]) <= 4 < min(found["experts_before"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["decode_rows"] == found["decode_rows"] == 8 * 19
    with capsys.disabled():
        print(
            f"\nown process: {mean(found['experts_before']):.2f} -> {mean(found['experts_after']):.2f} experts a layer"
        )


def test_two_tensor_parallel_ranks_decide_alike(tmp_path):
    said = run_script(
        f"""
        import json
        from vllm import LLM, SamplingParams
        from lynx_exp.models import locate

        if __name__ == "__main__":
            llm = LLM(model=locate("lynx_tiny"), dtype="float32", max_model_len=256, max_num_seqs=16,
                      enforce_eager=True, enable_prefix_caching=False, tensor_parallel_size=2,
                      additional_config={{"lynx": {QUARTER!r}}})
            llm.generate({PROMPTS!r}, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), use_tqdm=False)
            one, other = llm.collective_rpc("lynx_record")
            assert one == other, (one, other)
            print("FOUND", json.dumps(one))
        """,
        tmp_path,
        VLLM_CPU_OMP_THREADS_BIND="|".join(map(str, sorted(os.sched_getaffinity(0))[:2])),
    )
    found = json.loads(next(line for line in said.splitlines() if line.startswith("FOUND"))[6:])
    assert found["decode_rows"] == 8 * 19 and max(found["experts_after"]) <= 4


# Lanes and the backend.


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    from lynx_exp.vllm_backend import VllmEngine, open_llm

    engine = VllmEngine(open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=96, memory_gib=0.5))
    yield engine
    engine.close()


def asked(engine: Any, count: int = 16) -> list[Any]:
    from lynx_exp.engine import Request

    texts = [f"Question: Ann has {2 + i} pens and loses {i % 3}. How many?\nAnswer:" for i in range(count)]
    return [
        Request(prompt_ids=tuple(engine.tokenizer(text).input_ids), max_new_tokens=10 + i % 9, stop=("\n\n",))
        for i, text in enumerate(texts)
    ]


def test_lanes_of_many_policies_are_those_of_the_transformers_backend(backend):
    """Tokens, texts, ends, rows and active experts of every lane, though all share one engine and kernels differ."""
    from lynx_exp import Engine
    from lynx_exp.engine import BatchPlan

    other = Engine.from_pretrained("lynx_tiny", dtype="float32", device="cpu")
    requests = asked(backend)
    policies = [
        None,
        *(build_policy(name, **REQUIRED.get(name, {})) for name in ("no_drop", "lynx", "oea", "coverage")),
    ]
    policies += [POLICIES["lynx_v1_latency"], POLICIES["random_keep"], POLICIES["sere"]]
    plans = [BatchPlan.static(16, 4, 1), BatchPlan.static(16, 16, 1)]
    made = [(plan, policy) for plan in plans for policy in policies]
    jobs = [backend.job(requests, plan, policy) for plan, policy in made]
    own = {(job, lane.lane): lane for job, lane in backend.run_jobs(jobs)}
    same = {
        key: own[key] == lane
        for number, (plan, policy) in enumerate(made)
        for lane in other.run_lanes(requests, plan, policy)
        for key in [(number, lane.lane)]
    }
    assert len(same) == len(own) and all(same.values()), [key for key, equal in same.items() if not equal]


def test_scores_are_those_of_the_transformers_backend(backend):
    from dataclasses import replace

    from lynx_exp import Engine
    from lynx_exp.engine import BatchPlan

    other = Engine.from_pretrained("lynx_tiny", dtype="float32", device="cpu")
    texts = [" three pens are left", " none", " it is 4", " five and two"]
    requests = [
        replace(request, continuation_ids=tuple(backend.tokenizer(texts[n % 4]).input_ids[1:]))
        for n, request in enumerate(asked(backend, 8))
    ]
    plan = BatchPlan.in_order(8, 4)
    for policy in (None, POLICIES["lynx_v1_latency"]):
        mine, theirs = (
            sorted(each.score_lanes(requests, plan, policy), key=lambda lane: lane.lane) for each in (backend, other)
        )
        for one, two in zip(mine, theirs, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-3) and one.greedy == two.greedy
            assert (one.live_rows, one.active_experts) == (two.live_rows, two.active_experts)


def test_continuous_lanes_in_vllm(backend):
    from lynx_exp.engine import BatchPlan

    requests, plan = asked(backend), BatchPlan.continuous(16, 4, seed=2, waves=2)
    for policy in (None, POLICIES["lynx_v1_latency"]):
        lanes = list(backend.run_lanes(requests, plan, policy))
        assert sorted(number for lane in lanes for number in lane.requests) == list(range(16))
        assert {max(lane.live_rows) for lane in lanes} == {4}


def test_latency_of_a_lane_alone(backend):
    prompts = [request.prompt_ids for request in asked(backend, 4)]
    two = build_policy("lynx_v1_latency", keep_experts=2)
    timing = backend.measure(prompts, batch_size=4, policies={"two": two}, new_tokens=6, repeats=2)
    assert timing.active_experts["two"] == 2 < timing.active_experts["vanilla"]
    assert [len(steps) for steps in timing.step_ms["two"]] == [6, 6]
    assert timing.serving["two"]["e2e_mean_ms"] > timing.serving["two"]["ttft_mean_ms"] > 0


def test_prompts_shared_by_prefix_caching_change_no_token():
    """Prompts longer than vLLM's blocks, decoded by three policies; the second and third find their prompts cached."""
    from lynx_exp.engine import BatchPlan, Request
    from lynx_exp.vllm_backend import VllmEngine, open_llm

    found = []
    for caching in (False, True):
        engine = VllmEngine(
            open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=8, memory_gib=0.5, prefix_caching=caching)
        )
        text = " ".join(f"Ann has {n} pens and Tom has {n + 1} more." for n in range(14))
        ids = engine.tokenizer(text).input_ids
        requests = [Request(prompt_ids=tuple(ids[n : n + 180]), max_new_tokens=6, ignore_eos=True) for n in range(4)]
        plan = BatchPlan.in_order(4, 4)
        jobs = [engine.job(requests, plan, policy) for policy in (None, POLICIES["lynx"], POLICIES["lynx_v1_latency"])]
        jobs.append(engine.job(requests, plan, POLICIES["lynx"], "both"))
        found.append({job: lane.token_ids for job, lane in engine.run_jobs(jobs)})
        engine.close()
    assert found[0] == found[1]


def test_cells_from_the_command_line(tmp_path, capsys):
    """The same table from both backends, in a process of its own: first with vLLM, again (nothing is run), and with
    transformers."""
    grid = ["-m", "model=lynx_tiny", "task=mini_gsm8k,mini_wmt16", "policy=vanilla,lynx", "batch_size=4,16", "limit=16"]
    program = str(Path(sys.executable).parent / "lynx-exp")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> str:
        done = subprocess.run(
            [program, *grid, *more], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    assert "8 cells: 8 done, 0 skipped, 0 failed" in run("backend=vllm", "study_name=vllm", "then=[table,figures]")
    assert "0 done, 8 skipped" in run("backend=vllm", "study_name=vllm")
    run("study_name=transformers")
    from lynx_exp.store.read import read_cells

    one, two = (read_cells(tmp_path / "results" / name) for name in ("vllm", "transformers"))
    assert {cell.info["backend"] for cell in one} == {"vllm"}
    assert list((tmp_path / "results" / "vllm").rglob("*.png")), "figures are drawn"
    tokens = []
    for cells in (one, two):
        said = {}
        for cell in cells:
            point = (cell.info["task"], cell.info["policy"], cell.info["batch_size"])
            rows = pq.read_table(cell.path / "responses.parquet").to_pylist()
            said |= {(*point, row["request"]): row["response"] for row in rows}
        tokens.append(said)
    same = sum(tokens[0][key] == tokens[1][key] for key in tokens[1])
    assert len(tokens[0]) == len(tokens[1]) == 8 * 16
    with capsys.disabled():
        print(f"\nresponses equal in both backends: {same} of {len(tokens[1])}")
    assert same >= 0.95 * len(tokens[1])


# Fail closed.


@pytest.mark.parametrize(
    ("setting", "more", "says"),
    [
        ({"policy": "lnyx"}, {}, "did you mean lynx"),
        ({"policy": "lynx", "layers": "9"}, {}, "this model has layers 0..3"),
        ({"policy": "oea", "k0": 5}, {}, "must lie in 1..2"),
        (QUARTER, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative_config"),
    ],
)
def test_what_is_refused_at_the_start(setting, more, says):
    with pytest.raises(ValueError, match=says) as error, started(setting, **more):
        pass
    assert "\n" not in str(error.value)


def test_versions_outside_the_window_and_batch_invariance(monkeypatch):
    import vllm

    with monkeypatch.context() as patch:
        patch.setattr(vllm, "__version__", "0.31.2")
        with pytest.raises(ValueError, match="vllm=0.31.2"), started(QUARTER):
            pass
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with pytest.raises(ValueError, match="VLLM_BATCH_INVARIANT=1"), started(QUARTER):
        pass


def test_a_kernel_that_routes_by_itself(monkeypatch):
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    monkeypatch.setattr(MoERunner, "is_monolithic", property(lambda self: True))
    with pytest.raises(ValueError, match="routes inside its kernel, where no policy reaches"), started(QUARTER):
        pass


def test_a_dense_model(tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lynx_exp.models import locate

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(locate("lynx_tiny")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no layer of routed experts"), started(QUARTER, str(tmp_path)):
        pass


def test_a_router_that_goes_round_the_plugin(stock):
    with started(QUARTER) as llm:
        worker = worker_of(llm)
        router = worker.lynx._layers[2].router
        del router._compute_routing  # the class's own is left
        with pytest.raises(RuntimeError, match="3 of 4 layers asked what to run"):
            say(llm)


# lm-eval's own backend, and vLLM's own benchmarks.


TASK = """
task: shapes_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
metric_list: [{{metric: {metric}}}]
"""


def test_the_stock_vllm_backend_of_lm_eval(tmp_path):
    """A task that generates has its decode rows pruned; a task of choices, which prefills only, is flagged."""
    data = tmp_path / "data.json"
    rows = [{"question": prompt, "answer": "4", "choices": [" 4", " 5"], "label": 0} for prompt in PROMPTS]
    data.write_text("\n".join(map(json.dumps, rows)))
    more = "generation_kwargs: {until: ['Question'], max_gen_toks: 12}"
    (tmp_path / "generate.yaml").write_text(
        TASK.format(kind="generate_until", data=data, target="answer", more=more, metric="exact_match")
    )
    (tmp_path / "choice.yaml").write_text(
        TASK.format(kind="multiple_choice", data=data, target="label", more="doc_to_choice: choices", metric="acc")
    )
    # lm-eval asks for a distribution called vllm; the CPU build has another name
    about = tmp_path / "site" / "vllm-0.32.0+cpu.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    reports = {}
    for task in ("generate_until", "multiple_choice"):
        report = tmp_path / f"{task}.json"
        said = run_script(
            f"""
            import lm_eval
            from lm_eval.tasks import TaskManager
            from lynx_exp.models import locate

            if __name__ == "__main__":
                arguments = dict(pretrained=locate("lynx_tiny"), dtype="float32", max_model_len=256, max_num_seqs=8,
                                 enforce_eager=True, enable_prefix_caching=False,
                                 additional_config={{"lynx": {QUARTER!r} | {{"report": {str(report)!r}}}}})
                manager = TaskManager(include_path={str(tmp_path)!r}, include_defaults=False)
                lm_eval.simple_evaluate("vllm", model_args=arguments, tasks=["shapes_{task}"], task_manager=manager)
            """,
            tmp_path,
            PYTHONPATH=str(tmp_path / "site"),
            HF_DATASETS_OFFLINE="1",
            HF_HOME=str(tmp_path / "hub"),
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
        )
        reports[task] = json.loads(report.read_text())
        flagged = "never acted: no decode row" in said
        assert flagged == (task == "multiple_choice"), said[-2000:]
    generated, chosen = reports["generate_until"], reports["multiple_choice"]
    assert generated["decode_rows"] > 0 and max(generated["experts_after"]) <= 4 < max(generated["experts_before"])
    assert chosen["decode_rows"] == 0 < chosen["prefill_rows"]


def test_the_file_of_a_compiled_model_names_the_setting():
    """vLLM keeps compiled models under a hash of its configuration: the setting is part of it."""
    from vllm.engine.arg_utils import EngineArgs

    from lynx_exp.models import locate

    def digest(setting: dict[str, Any] | None) -> str:
        extra = {} if setting is None else {"additional_config": {"lynx": setting}}
        made = EngineArgs(model=locate("lynx_tiny"), dtype="float32", max_model_len=256, **extra).create_engine_config()
        return hashlib.sha256(made.compute_hash().encode()).hexdigest()

    settings = [None, QUARTER, QUARTER | {"keep_experts": 5}, {"policy": "lynx"}]
    assert len({digest(setting) for setting in settings}) == len(settings)
