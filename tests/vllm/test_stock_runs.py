"""Inside stock vLLM: compiled, in other processes, on ranks, under lm-eval; and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pytest

from tests.vllm.stock import (
    MARKS,
    PROMPTS,
    QUARTER,
    mean,
    run_script,
    say,
    started,
    worker_of,
)

pytestmark = MARKS


def test_a_compiled_model_says_what_an_eager_one_does(capsys):
    with started(QUARTER) as llm:
        eager, counted = say(llm), llm.collective_rpc("lynx_record")[0]
    with started(QUARTER, enforce_eager=False) as llm:
        assert say(llm) == eager
        found = llm.collective_rpc("lynx_record")[0]
    assert found == counted and max(found["experts_after"]) == 4 < min(found["experts_before"])
    with capsys.disabled():
        print(f"\ncompiled: {mean(found['experts_before']):.2f} -> {mean(found['experts_after']):.2f} experts a layer")


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


def test_a_router_that_goes_round_the_plugin():
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
