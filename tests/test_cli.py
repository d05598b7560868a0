"""What a user types: bad input in one line before a model is loaded, help that is fast, one real run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lynx_exp import cli
from lynx_exp.prepare import command_line as prepare_cli
from lynx_exp.results import main as results
from lynx_exp.run.outcomes import Outcome, Report
from tests.analysis.fake_study import POLICIES, write_cell
from tests.quick_figures import quick_figures

RANDOM = "model=random"
HUGE = str(2**70)
BAD = [
    (["policy=lynxx"], "policy=lynxx", "did you mean lynx?"),
    (["scale=papr"], "error: scale=papr", "did you mean paper?"),
    (["task.repeats=4"], "task.repeats=4", "decodes greedily"),
    (["policy=lynx", "policy.alfa=2"], "policy.alfa=2", "policy.alpha"),
    (["layers=x", "policy=lynx"], "layers=x", "ranges such as 1:"),
    (["layers=9", "policy=lynx"], "layers=9", "layers 0..3"),
    (["kernel=cuda"], "kernel=cuda", "auto, torch, triton"),
    (["kernel=triton", "device=cpu", "policy=lynx"], "kernel=triton", "CUDA device"),
    (["policy=sere", "model=random"], "calibration=auto", "lynx-prepare calibrate"),
    (["policy=sere", "policy.calibration=nowhere.safetensors"], "nowhere.safetensors", "no such file"),
    (["policy=no_drop", "policy.match_active=5"], "policy.match_active=5", "unknown field"),
    (["policy=oea", "policy.match_active=-1"], "policy.match_active=-1", "must be a number of experts"),
    (["policy=top_k", "policy.k=[1,2,x]"], "k=x", "must be of type int"),
    (["policy=oea", "policy.k0=3"], "k0=3", "must lie in 1..2"),
    (
        ["policy.alpha=2"],
        "policy.alpha=2",
        "known: policy.min_batch, policy.weights, policy.k2, policy.protect, policy.per_layer, policy.match",
    ),
    (["policy=lynx", "policy.alpha=big"], "alpha=big", "must be a number"),
    (["policy=lynx", "policy.alpha=-1"], "alpha=-1", "above 0"),
    (["policy=deny_rank", "policy.mode=swap", RANDOM], "mode=swap", "replace, drop"),
    ([RANDOM, "policy=lynx_v1_latency", "policy.keep_experts=40"], "keep_experts=40", "2..16"),
    ([RANDOM, "policy=lynx_v1_latency", "policy.keep_experts=1"], "keep_experts=1", "2..16"),
    ([RANDOM, "policy=top_k", "policy.k=3"], "k=3", "1..2"),
    ([RANDOM, "-m", "policy=vanilla,random_keep", "policy.keep_experts=99"], "policy.keep_experts=99", "parameters"),
    (["batch_size=0"], "batch_size=0", "at least 1"),
    (["batch_size=abc"], "batch_size=abc", "an integer"),
    (["batch_size=1,4"], "batch_size=1,4", "-m"),
    (["limit=0"], "limit=0", "at least 1, or null"),
    (["phases=encode"], "phases=encode", "did you mean decode?"),
    (["batching=continous"], "batching=continous", "did you mean continuous?"),
    (["batching=continuous", "waves=0"], "waves=0", "at least 1"),
    (["scoring=both"], "scoring=both", "decode, prefill"),
    (["truncate=right"], "truncate=right", "error, left"),
    (["max_rows=64"], "max_rows=64", "pack"),
    (["pack.max_rows=0"], "pack.max_rows=0", "at least 1"),
    (["pack.max_cells=0"], "pack.max_cells=0", "at least 1"),
    (["pack.memory_gib=0"], "pack.memory_gib=0", "above 0, or null"),
    (["pack.memory_gib=much"], "pack.memory_gib=much", "a number"),
    (["backend=sglang"], "backend=sglang", "transformers, vllm"),
    (["backend=vllm", "fidelity=true", "policy=lynx"], "fidelity=true", "only with backend=transformers"),
    (["backend=vllm", "scoring=prefill"], "scoring=prefill", "only with backend=transformers"),
    (["backend=vllm", "threads=2"], "threads=2", "OMP_NUM_THREADS"),
    (["backend=vllm", "model.parallel=tp"], "model.parallel=tp", "tensor_parallel_size"),
    (["backend=vllm", RANDOM], "model.kind=random", "save_pretrained"),
    (["vllm.max_num_batched_tokens=0"], "vllm.max_num_batched_tokens=0", "at least 1"),
    (["+vllm.engine_args.dtype=half"], "vllm.engine_args.dtype", "other fields"),
    (["dtype=int8"], "dtype=int8", "bfloat16"),
    (["device=gpu"], "device=gpu", "cuda"),
    (["measure.latency=perhaps"], "measure.latency=perhaps", "true or false"),
    (["measure.repeats=0"], "measure.repeats=0", "at least 1"),
    (["measure.windows=1"], "measure.windows=1", "at least 2"),
    (["measure.windows=30"], "measure.max_windows=24", "at least measure.windows=30"),
    (["measure.precision=0"], "measure.precision=0", "above 0 and below 1"),
    (["measure.context=0"], "measure.context=0", "at least 1"),
    (["measure.prefill=true"], "measure.prefill=true", "needs measure.latency=true"),
    (["measure.breakdown=true"], "measure.breakdown=true", "needs measure.latency=true"),
    (["-m", "hydra.sweeper.cells=['policy=top_k policy.k=<Q>']"], "policy.k=<Q>", "<K>"),
    (["measure.precision=2"], "measure.precision=2", "above 0 and below 1"),
    (["task=gsm9k"], "task=gsm9k", "mini_gsm8k"),
    (["task.subtasks=[mini_gsm9k]", RANDOM], "mini_gsm9k", "mini_gsm8k"),
    (["model=mixtral"], "model=mixtral", "mixtral_8x7b"),
    (["model=hub"], "model.id", "PATH_OR_HUB_ID"),
    (["model=hub", "model.id=/no/such/model"], "model.id=/no/such/model", "no such folder"),
    (["model=hub", "model.id=no/such-model"], "model.id=no/such-model", "nor in the local cache of the hub"),
    (["model=hub", "model.id=no/such-model", "plan=true"], "its shape is unknown", "`lynx-prepare prefetch`"),
    ([RANDOM, "model.id=mixtrl"], "model.id=mixtrl", "did you mean mixtral?"),
    ([RANDOM, "+model.config.hidden=8"], "model.config.hidden", "no such field"),
    (["then=[tables]"], "then=tables", "did you mean table?"),
    (["study_name=a/b"], "study_name=a/b", "plain folder name"),
    (["study=demo"], "study=demo", "+study=NAME"),
    (["+study=dem"], "+study=dem", "did you mean demo?"),
    (["polcy=lynx"], "polcy=lynx", "did you mean policy?"),
    (["alpha=1"], "alpha=1", "did you mean policy.alpha, with policy=lynx?"),
    (["policy=lynx", "alpha=1"], "alpha=1", "did you mean policy.alpha?"),
    (["latency=true"], "latency=true", "did you mean measure.latency?"),
    (["--policy=lynx"], "--policy=lynx", "did you mean policy=lynx?"),
    (["task=gsm8k_mini"], "task=gsm8k_mini", "did you mean mini_gsm8k?"),
    (["task.subtasks=[gsm8k_mini]"], "gsm8k_mini", "did you mean mini_gsm8k?"),
    (["-m", "policy=vanilla,lynxx"], "policy=lynxx", "did you mean lynx?"),
    (["-m", "limit=range(1,100000000)"], "hydra.sweeper.max_cells=100000", "give fewer values, or raise it"),
    (["+study=demo", "hydra.sweeper.max_cells=10"], "hydra.sweeper.max_cells=10", "give fewer values, or raise it"),
    (["-m", "hydra.sweeper.max_cells=0"], "hydra.sweeper.max_cells=0", "at least 1"),
    (["-m", "batch_size=4,0"], "batch_size=0", "at least 1"),
    (["-m", "policy=lynx", "policy.alpha=interval(0,1)"], "interval(0,1)", "finite"),
    (["task=["], "task=[", ""),
    (["--sweep"], "--sweep", "--help"),
    (["-m", "limit=glob(*)"], "this sweep has no cell", "glob(...) is for groups alone"),
    ([f"study_name={'n' * 300}"], "study_name=nnnnnnnnnnnnnnnnnnnn...: 300 letters", "at most 200"),
    (["max_failures=0"], "max_failures=0", "at least 1, or null"),
    (["ignore_oom=maybe"], "ignore_oom=maybe", "true or false"),
    (["sandbox=docker"], "sandbox=docker", "bubblewrap"),
    (["sandbox=unsafe"], "sandbox=unsafe", "confirm_unsafe_code=true"),
    (["task=mix", "task.weights=[1,2]"], "task.weights=[1.0, 2.0]", "for each of task.subtasks"),
    (["task=mix", "task.mixing=both"], "task.mixing=both", "shuffled, separate"),
    (["task.num_fewshot=-1"], "task.num_fewshot=-1", "at least 0"),
    (["task.generation.top_p=2"], "task.generation.top_p=2", "at most 1"),
    (["task.generation.temperature=-1"], "task.generation.temperature=-1", "0 (greedy) or above"),
    (["task.apply_chat_template=true", RANDOM], "task.apply_chat_template=true", "no chat template"),
    (["+control=noise"], "+control=noise", "did you mean noise_floor?"),
    # fields that nobody asked for, however they are added
    (["+foo=1"], "foo=1", "unknown field"),
    (["++x=1"], "x=1", "unknown field"),
    (["+a.b.c=1"], "a={'b': {'c': 1}}", "unknown field"),
    (["model=random", "model.config={a: 1}"], "model.config={a: 1}", "+model.config.NAME=VALUE"),
    ([RANDOM, "model.id=qwen2_moe", "model.config.num_local_experts=8"], "model.config.num_local_experts", "qwen2_moe"),
    ([RANDOM, "model.sizes.experts=0"], "model.sizes.experts=0", "at least 1"),
    ([RANDOM, "model.sizes.top_k=17"], "model.sizes.top_k=17", "at most experts=16"),
    ([RANDOM, "model.sizes.hidden=250"], "model.sizes.hidden=250", "a multiple of heads=8"),
    ([RANDOM, "+model.sizes.expert=4"], "expert", "did you mean experts?"),
    (["model.config.hidden_size=8"], "model.config={'hidden_size': 8}", "only model=random"),
    (["first=calibrate"], "first=calibrate", "must be a list: first=[calibrate]"),
    (["pack.checkpoint_minutes=null"], "pack.checkpoint_minutes=null", "cannot be null"),
    (["task.chat_template_args.thinking=false"], "thinking=false", "+task.chat_template_args.thinking=false"),
    (["policy=lynx", "policy.weights=masss"], "weights=masss", "did you mean mass?"),
    (["+batchsize=4"], "batchsize=4", "did you mean batch_size?"),
    (["-m", "+batchsize=4,8"], "batchsize=4", "did you mean batch_size?"),
    (["+measure.latncy=true"], "measure.latncy=True", "did you mean latency?"),
    (["+model.foo=1"], "model.foo=1", "model.kind"),
    (["+task.generation.tempature=1"], "task.generation.tempature=1", "did you mean temperature?"),
    (["+policy.foo=1"], "foo", "known: min_batch"),
    (["+tracker.foo=1"], "tracker.foo=1", "tracker.name"),
    (["+hydra.foo=1"], "hydra.foo=1", "unknown field"),
    (["-m", "+hydra.sweeper.cels=['limit=1']"], "hydra.sweeper.cels", "did you mean cells?"),
    # folders of Hydra's own
    (["hydra.run.dir=out"], "hydra.run.dir=out", "results=FOLDER"),
    (["-m", "hydra.sweep.dir=out"], "hydra.sweep.dir=out", "results=FOLDER"),
    (["hydra.job.chdir=true"], "hydra.job.chdir=true", "results=FOLDER"),
    (["hydra.job={chdir: true}"], "hydra.job.chdir=True", "results=FOLDER"),
    (["hydra.output_subdir=.hydra"], "hydra.output_subdir=.hydra", "results=FOLDER"),
    (["hydra={run: {dir: out}}"], "hydra={run: {dir: out}}", "one by one"),
    # numbers beyond all reason
    (["threads=1000000"], "threads=1000000", "at most 1024"),
    (["threads=1024"], "threads=1024", "on this machine"),
    ([f"batch_size={HUGE}"], f"batch_size={HUGE}", "at most 1048576"),
    ([f"limit={HUGE}"], f"limit={HUGE}", "at most 2147483647"),
    ([f"seed={HUGE}"], f"seed={HUGE}", "at most 4294967295"),
    (["seed=-1"], "seed=-1", "at least 0"),
    ([RANDOM, f"model.seed={HUGE}"], f"model.seed={HUGE}", "at most 4294967295"),
    ([f"task.fewshot_seed={HUGE}"], f"task.fewshot_seed={HUGE}", "at most 4294967295"),
    (["policy=random_keep", f"policy.seed={HUGE}"], f"policy.seed={HUGE}", "64 bits"),
    (["pack.memory_gib=inf"], "pack.memory_gib=inf", "above 0, or null"),
    (["measure.precision=nan"], "measure.precision=nan", "below 1"),
    (["tracker.wait_s=inf"], "tracker.wait_s=inf", "at least 0"),
    (["task=mix", "task.weights=[1,1,1,inf]"], "task.weights=[1.0, 1.0, 1.0, inf]", "above 0"),
    (["policy=lynx", "policy.match_active=inf"], "policy.match_active=inf", "finite"),
    (["policy=lynx", "policy.match_active=1e9"], "policy.match_active=1e+09", "at most 16"),
    (["policy=lynx", "policy.alpha=nan"], "policy.alpha=nan", "finite"),
    (["policy=lynx", "policy.alpha=1e300"], "alpha=1e+300", "at most"),
    (["policy=coverage", "policy.tolerance=1e308"], "tolerance=1e+308", "at most"),
    (["policy=coverage", "policy.tolerance=1e5"], "tolerance=100000.0", "at most 100"),
    (["policy=coverage", "policy.power=1e9"], "power=1000000000.0", "1.0..100.0"),
    (["policy=top_k", "policy.k=[1,1]"], "a list of 2 values", "4 layers with a router"),
    ([RANDOM, "policy=top_k", "policy.k=[1,1,1,1,1]"], "a list of 5 values", "4 layers with a router"),
    (["task.generation.temperature=1e-320"], "temperature=9.99989e-321", "from 0.001"),
    (["task.generation.temperature=inf"], "temperature=inf", "to 1000"),
    (["task.generation.max_gen_toks=1000000"], "task.generation.max_gen_toks=1000000", "512 positions"),
    ([f"task.generation.max_gen_toks={HUGE}"], f"task.generation.max_gen_toks={HUGE}", "at most"),
    (["measure.latency=true", "measure.context=1000000"], "measure.context=1000000", "512 positions"),
    (["measure.latency=true", "measure.new_tokens=100000"], "measure.new_tokens=100000", "512 positions"),
    (["task.generation.until=['']"], "task.generation.until=['']", "leave it out"),
    (['task.generation.until=["\\n"]'], "task.generation.until=['\\n']", "a backslash and an n"),
    # layers
    (["policy=lynx", "layers=true"], "layers=True", "[0,4:8]"),
    (["policy=lynx", "layers=[]"], "layers=[]", "[0,4:8]"),
    (["policy=lynx", "layers=[0,9]"], "layers=0,9", "layers 0..3"),
    (["policy=lynx", "layers=0,x"], "layers=0,x", "layers=[0,4:8] is one cell"),
    (["policy=vanilla", "layers=a:b"], "layers=a:b", "numbers and ranges"),
    (["policy=vanilla", "layers=99"], "layers=99", "layers 0..3"),
    (["-m", "plan_seeds=100000000"], "plan_seeds=100000000", "at most 1000"),
    (["results="], "results=", "must be a folder"),
    (["~batch_size"], "~batch_size", "give batch_size=VALUE"),
    (["~pack.max_rows=8"], "~pack.max_rows=8", "give pack.max_rows=VALUE"),
]


@pytest.fixture
def no_model(monkeypatch):
    from lynx_exp.engine import Engine

    def load(*_args, **_more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Engine, "from_pretrained", load)
    monkeypatch.setattr(Engine, "from_config", load)


@pytest.mark.parametrize(("arguments", "names", "allowed"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line(arguments, names, allowed, no_model, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lynx-exp: error: "), err
    assert names in err and allowed in err, err
    assert not list(tmp_path.iterdir()), "bad input leaves no folders"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["layers=0,2:4"], ["0,2:4"]),
        (["layers=[0,2:4]"], ["0,2:4"]),
        (["layers='0,2:4'"], ["0,2:4"]),
        (["layers=-1"], ["-1"]),
        (["-m", "layers=[0,2:4],'1,2'"], ["0,2:4", "1:3"]),
        (["-m", "layers=0,2:4"], ["0", "2:4"]),
    ],
    ids=str,
)
def test_layers_as_people_type_them(arguments, expected, monkeypatch):
    seen: list[str] = []

    def run(configs, **_more):
        seen.extend(config.layers for config in configs)
        return Report(outcomes=[Outcome(state="done", folder=Path()) for _ in configs])

    monkeypatch.setattr("lynx_exp.run.run_cells.run_cells", run)
    assert cli.run([*arguments, "policy=lynx"]) == 0
    assert seen == expected


def test_a_real_line_break_ends_responses(monkeypatch):
    seen = []

    def run(configs, **_more):
        seen.extend(configs)
        return Report(outcomes=[])

    monkeypatch.setattr("lynx_exp.run.run_cells.run_cells", run)
    assert cli.run(['task.generation.until=["\n"]']) == 0
    assert seen[0].task.generation.until == ["\n"]


@pytest.mark.parametrize("module", ["lynx_exp", "lynx_exp.cli"])
def test_the_module_is_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "limit=0"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("lynx-exp: error: limit=0"), done.stderr


def test_a_model_that_is_not_an_moe(no_model, capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    assert cli.run(["model=hub", f"model.id={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "GPT2LMHeadModel is not a Mixture-of-Experts model" in err and str(tmp_path) in err


def test_a_bug_is_not_passed_off_as_bad_input(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def crash(*_args, **_more):
        raise ZeroDivisionError

    monkeypatch.setattr("lynx_exp.run.run_cells.run_cells", crash)
    with pytest.raises(ZeroDivisionError):
        cli.run([])


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    from lynx_exp.run.interrupt import Interrupted

    def stop(*_args, **_more):
        raise Interrupted("interrupted: 2 of 3 cells are done and kept; run the same command to continue")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lynx_exp.run.run_cells.run_cells", stop)
    for arguments in ([], ["-m", "batch_size=1,2"]):
        assert cli.run(arguments) == 130
        err = capsys.readouterr().err
        assert err == "lynx-exp: interrupted: 2 of 3 cells are done and kept; run the same command to continue\n"


def test_help_teaches_and_is_fast():
    begun = time.perf_counter()
    code = "from lynx_exp.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "--help"], capture_output=True, text=True, check=True
    )
    for word in (
        "policy: coverage",
        "study: batching, benchmarks, demo",
        "-m",
        "Exit codes",
        "lynx-results",
        "study_name=default",
        "measure.latency=false",
        "pack.max_rows=256",
        "scoring=decode",
    ):
        assert word in done.stdout, word
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "lm_eval", "pandas", "wandb", "matplotlib"}
    assert time.perf_counter() - begun < 60  # a hang, not a benchmark


def test_results_and_prepare_refuse_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        results.main(["table", str(tmp_path / "none")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("lynx-results: error: ") and err.count("\n") == 1
    for arguments, names in (
        (["train", "stps=3"], "did you mean steps?"),
        (["train", "steps=many"], "steps=many: must be an integer"),
        (["train", "top_k=99"], "top_k=99: must lie in"),
        (["train", "+mix.other=1"], "must give a share"),
        (["train", "+stepz=3"], "stepz=3: unknown field"),
        (["train", "out=/dev/null/x"], "out=/dev/null/x: cannot be written to"),
        (["calibrate", "+foo=1"], "foo=1: unknown field"),
        (["calibrate", "data=x", "out=/dev/null/x"], "out=/dev/null/x: /dev/null is a file"),
    ):
        assert prepare_cli.run(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("lynx-prepare: error: ") and err.count("\n") == 1 and names in err, err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("margin", ["inf", "nan", "0", "-1", "101"])
def test_a_margin_is_a_number_of_points(margin, capsys, tmp_path):
    for policy in POLICIES[:2]:
        write_cell(tmp_path, policy=policy)
    with pytest.raises(SystemExit) as stop:
        results.main(["recommend", str(tmp_path), "--margin", margin])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert f"margin={margin}: must be above 0, and at most 100" in err and err.count("\n") == 1


def test_a_real_grid_on_random_weights_and_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["model.config.hidden_size=32", "model.config.intermediate_size=32", "model.config.num_hidden_layers=2"]
    arguments = [
        "-m",
        RANDOM,
        *tiny,
        "task=mini_truthfulqa",
        "limit=3",
        "policy=vanilla,lynx_v1_latency",
        "batch_size=2",
    ]
    arguments += [
        "measure.latency=true",
        "measure.new_tokens=3",
        "measure.repeats=2",
        "threads=1",
        "then=[table,figures]",
    ]
    with quick_figures():
        assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    assert "2 cells: 2 done, 0 skipped, 0 failed; in results/default" in out and "pareto" in out
    cells = sorted(Path("results/default").glob("random*/DONE")) + sorted(Path("results/default").glob("mixtral*/DONE"))
    assert len(cells) == 2
    policy = next(cell.parent for cell in cells if "latency" in cell.parent.name)
    metrics = json.loads((policy / "metrics.json").read_text())
    assert 2 <= metrics["active_experts"] <= 4
    with quick_figures():
        assert cli.run(arguments) == 0
    assert "2 cells: 0 done, 2 skipped, 0 failed" in capsys.readouterr().out
