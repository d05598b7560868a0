"""`lynx-prepare prefetch` against a hub on this machine, and what then runs without one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lynx_exp.config import Config
from lynx_exp.models import BUNDLED
from lynx_exp.prepare import command_line as cli
from lynx_exp.prepare.hub import Entry, explain_failure, model_files
from lynx_exp.prepare.prefetch import jobs, needs, size_text, table
from tests.prepare.fake_hub import FakeHub, Repo, fake_hub

TOKEN = "hf_neverToBeShown"
SUMS = [{"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(7)]
PROGRAMS = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f"def more{i}(x):\n    '''x and {i}'''\n",
        "canonical_solution": f"    return x + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
        "entry_point": f"more{i}",
    }
    for i in range(2)
]
PAIRS = [{"translation": {"de": f"Haus {i}", "en": f"House {i}"}} for i in range(3)]
LOAD = """
import sys
from lynx_exp.tasks import TaskSettings, load_task
for asked in sys.argv[1:]:
    name, _, revision = asked.partition("@")
    task = load_task(name, settings=TaskSettings(revision=revision or None))
    print(task.revision, len(task.requests))
"""
CELL = ["truncate=left", "limit=2", "batch_size=2", "task.generation.max_gen_toks=8"]
TINY = ["model=hub", "model.id=org/tiny"]


def parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def lines(rows: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def card(**configs: dict[str, str]) -> bytes:
    """A README that says which files are which split of which configuration."""
    described = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for name, splits in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': described})}---\nMade up for the tests.\n".encode()


def gsm8k(rows: list[dict], ending: str = "parquet") -> dict[str, bytes]:
    write = parquet if ending == "parquet" else lines
    files = {split: f"main/{split}-00000-of-00001.{ending}" for split in ("train", "test")}
    return {"README.md": card(main=files), **{path: write(rows) for path in files.values()}}


def tiny() -> dict[str, bytes]:
    """lynx_tiny as many models lie on the hub: with the same weights in other forms beside it, and code."""
    files = {path.name: path.read_bytes() for path in BUNDLED["lynx_tiny"].iterdir()}
    return files | {
        "pytorch_model.bin": b"x" * 99,
        "original/consolidated.00.pth": b"x" * 99,
        "consolidated.safetensors": b"x" * 99,
        "modeling.py": b"raise SystemExit('never to be run')",
    }


@dataclass
class Machine:
    """A folder to work in and a cache, as on a node."""

    folder: Path
    hub: FakeHub

    def start(self, *command: str, online: bool = True, **more: str) -> subprocess.Popen[str]:
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k.upper() not in proxies}
        env |= {"HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": TOKEN}
        env |= {"HF_ENDPOINT": self.hub.endpoint} if online else {"HF_HUB_OFFLINE": "1"}
        env |= {"PYTHONPATH": str(Path(__file__).parents[2])} | more
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, *command], env=env, cwd=self.folder, **pipes)

    def run(self, *command: str, online: bool = True, **more: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        process = self.start(*command, online=online, **more)
        try:
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
        assert TOKEN not in out + err
        return process.returncode, out, err

    def prefetch(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        return self.run("-m", "tests.prepare.test_prefetch", "lynx-prepare", "prefetch", *arguments, **more)

    def lynx_exp(self, *arguments: str) -> tuple[int, str, str]:
        return self.run("-m", "tests.prepare.test_prefetch", "lynx-exp", *arguments, online=False)

    def load(self, *names: str) -> tuple[int, str, str]:
        """`NAME` or `NAME@REVISION`, without the hub: a line with commit and number of requests for each."""
        return self.run("-c", LOAD, *names, online=False)


def row(out: str, name: str) -> str:
    """Of the last table in the output."""
    return [line for line in out.splitlines() if f" {name} " in line][-1]


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.add("org/tiny", tiny())
        hub.add("org/gated", tiny(), gated=True)
        hub.add("openai/gsm8k", gsm8k(SUMS), kind="dataset")
        programs = card(openai_humaneval={"test": "openai_humaneval/test-*"})
        files = {"README.md": programs, "openai_humaneval/test-0.jsonl": lines(PROGRAMS)}
        hub.add("openai/openai_humaneval", files, kind="dataset")
        splits = {split: f"de-en/{split}-*" for split in ("train", "validation", "test")}
        pairs = {f"{config}/{split}-0.parquet": parquet(PAIRS) for config in ("de-en", "cs-en") for split in splits}
        hub.add("wmt/wmt16", {"README.md": card(**{"de-en": splits}), **pairs}, kind="dataset")
        yield hub


@pytest.fixture(scope="module")
def fetched(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, tuple[int, str, str]]:
    """A machine after one prefetch, which had something to complain about."""
    machine = Machine(tmp_path_factory.mktemp("node"), hub)
    models = "model.id=org/tiny,org/gated,org/absent"
    return machine, machine.prefetch("-m", "model=hub", models, "task=gsm8k,humaneval,wmt16,mini_gsm8k")


def commit(hub: FakeHub, name: str, kind: str = "dataset") -> str:
    return hub.repos[kind, name].refs["main"]


def test_everything_is_fetched_but_what_fails_and_that_is_said(fetched, hub):
    _, (code, out, err) = fetched
    assert code == 2
    sha = commit(hub, "org/tiny", "model")
    assert row(out, "org/tiny").split() == ["model", "org/tiny", sha[:12], "39.4", "MB", "fetched"]
    for name, task in {"openai/gsm8k main": "gsm8k", "wmt/wmt16 de-en": "wmt16-en-de"}.items():
        assert row(out, f"{name} ({task})").endswith(" fetched")
        assert commit(hub, name.partition(" ")[0])[:12] in row(out, f"{name} ({task})")
    assert "failed: gated: accept its licence" in row(out, "org/gated") and "`hf auth login`" in row(out, "org/gated")
    assert "failed: no such repository" in row(out, "org/absent")
    assert "No hub needed: mini_gsm8k." in out
    last = err.splitlines()[-1]
    assert last.startswith("lynx-prepare: error: could not be fetched: org/gated: gated: ")
    assert "; org/absent: no such repository" in last


def test_of_a_model_only_what_transformers_reads(fetched, hub):
    machine, _ = fetched
    sha = commit(hub, "org/tiny", "model")
    snapshot = machine.folder / "hf" / "hub" / "models--org--tiny" / "snapshots" / sha
    expected = {"config.json", "generation_config.json", "model.safetensors", "recipe.json", "tokenizer.json"}
    assert {path.name for path in snapshot.iterdir()} == expected | {"tokenizer_config.json"}
    assert not [line for line in hub.downloads() if "cs-en" in line], "no other configuration of a data set"


def test_tasks_load_without_the_hub_and_know_their_commit(fetched, hub):
    """From parquet and from JSON Lines."""
    code, out, err = fetched[0].load("gsm8k", "humaneval")
    assert code == 0, err
    expected = [commit(hub, name) for name in ("openai/gsm8k", "openai/openai_humaneval")]
    assert [line.split()[0] for line in out.splitlines()] == expected


def test_without_the_data_one_line_says_what_to_fetch(tmp_path, hub):
    code, out, err = Machine(tmp_path, hub).lynx_exp("task=gsm8k")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lynx-exp: error: task.data=hub: openai/gsm8k main is not in the local cache")
    assert "lynx-prepare prefetch" in err


@pytest.mark.slow
def test_a_cell_runs_when_the_hub_is_gone(tmp_path):
    with fake_hub() as hub:
        hub.add("org/tiny", tiny())
        hub.add("openai/gsm8k", gsm8k(SUMS), kind="dataset")
        machine = Machine(tmp_path, hub)
        code, out, err = machine.prefetch(*TINY, "task=gsm8k", *CELL)
        assert code == 0, err
        assert f"HF_HUB_OFFLINE=1 lynx-exp {' '.join([*TINY, 'task=gsm8k', *CELL])}" in out
    code, out, err = machine.lynx_exp(*TINY, "task=gsm8k", *CELL)
    assert code == 0 and "1 done" in out, err
    (path,) = tmp_path.rglob("provenance.json")
    assert json.loads(path.read_text())["data_revisions"] == {"gsm8k": commit(hub, "openai/gsm8k")}


@pytest.mark.slow
def test_again_nothing_is_fetched(fetched, hub):
    machine, _ = fetched
    hub.asked.clear()
    code, out, err = machine.prefetch("-m", *TINY, "task=gsm8k,humaneval,wmt16")
    assert code == 0, err
    assert "Nothing to fetch." in out and out.count("already there") == 2 * 4
    assert hub.downloads() == []


@pytest.mark.slow
def test_a_dry_run_takes_no_data(tmp_path, hub):
    hub.asked.clear()
    code, out, err = Machine(tmp_path, hub).prefetch("--dry-run", *TINY, "task=gsm8k")
    assert code == 0, err
    assert "to fetch" in row(out, "org/tiny") and "To fetch: 39.4 MB" in out
    assert all(line.endswith("README.md") for line in hub.downloads())


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_revision_that_is_asked_for_is_the_one_that_comes(tmp_path, ending):
    """Two commits in one cache, the older one fetched last."""
    with fake_hub() as hub:
        repo: Repo = hub.add("openai/gsm8k", gsm8k(SUMS, ending), kind="dataset")
        first = repo.refs["main"]
        repo.refs["v1"] = first
        second = repo.commit(gsm8k(SUMS[:5], ending))
        machine = Machine(tmp_path, hub)
        for arguments in (["task=gsm8k"], ["task=gsm8k", "task.revision=v1"]):
            code, _, err = machine.prefetch(*arguments)
            assert code == 0, err
    code, out, err = machine.load("gsm8k", "gsm8k@main", "gsm8k@v1", f"gsm8k@{first}")
    assert code == 0, err
    assert out.splitlines() == [f"{second} 5", f"{second} 5", f"{first} 7", f"{first} 7"]
    code, _, err = machine.load("gsm8k@v7")
    assert code == 1 and "task.revision=v7" in err.splitlines()[-1]


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(tmp_path):
    with fake_hub() as hub:
        hub.add("org/tiny", tiny())
        hub.stalled = "model.safetensors"
        machine = Machine(tmp_path, hub)
        process = machine.start("-m", "tests.prepare.test_prefetch", "lynx-prepare", "prefetch", *TINY)
        try:
            assert hub.reached.wait(60)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        finally:
            process.kill()
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("lynx-prepare: interrupted; complete files stay")
        assert not list(tmp_path.rglob("*.incomplete"))
        hub.resume.set()
        hub.asked.clear()
        code, out, err = machine.prefetch(*TINY)
        assert code == 0, err
        assert [line.rpartition("/")[2] for line in hub.downloads()] == ["model.safetensors"]


FILES = ["config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "README.md", "logo.png", "x.py"]
PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]


def test_weights_are_taken_once():
    small = {"config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja"}
    others = ["original/model.safetensors", "consolidated.safetensors", "pytorch_model-00001-of-00001.bin", "m.gguf"]
    assert set(model_files([*FILES, *PARTS, *others], code=False)) == small | set(PARTS)
    one = [*FILES, "model.safetensors", "lynx_calibration.st", *others]
    assert set(model_files(one, code=True)) == small | {"model.safetensors", "x.py"}
    old = [*FILES, "pytorch_model.bin", "training_args.bin", "original/x.pth"]
    assert set(model_files(old, code=False)) == small | {"pytorch_model.bin"}


@pytest.mark.parametrize(
    ("arguments", "multirun", "count"),
    [
        (["task=gsm8k"], False, 1),
        (["model=mixtral_8x7b,olmoe_1b_7b", "task=gsm8k,humaneval"], True, 4),
        (["+study=demo"], False, 4 * 2),
        (["+study=demo", "task=gsm8k", "seed=0,1,2"], False, 2 * 3),
        (["+study=demo", "+cluster=slurm"], False, 4 * 2),
    ],
)
def test_jobs_are_those_of_lynx_exp(arguments, multirun, count):
    """But for the policies."""
    configs = jobs(arguments, multirun)
    assert len(configs) == count and all(isinstance(config, Config) for config in configs)


def test_each_is_needed_once(tmp_path):
    models = f"model.id=org/tiny,{tmp_path}"
    configs = jobs(["model=hub", models, "task=gsm8k,truthfulqa,mini_wmt16", "policy=vanilla,no_drop"], True)
    wanted = needs(configs)
    assert [model.id for model in wanted.models] == ["org/tiny"]
    assert [task.name for task in wanted.tasks] == ["gsm8k", "truthfulqa_gen", "truthfulqa_mc1", "truthfulqa_mc2"]
    assert wanted.local == ["mini_wmt16", str(tmp_path)]
    assert needs(jobs(["task=gsm8k", f"task.data={tmp_path}"], False)).tasks == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=gsm9k"], "did you mean gsm8k"),
        (["task=gsm8k,humaneval"], "add -m"),
        (["+study=dem"], "did you mean demo?"),
        (["model=hub", "model.id=/no/such/folder"], "no such folder"),
        (["task=custom", "task.subtasks=[gsm9k]"], "unknown 'gsm9k'"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    assert cli.run(["prefetch", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and err.startswith("lynx-prepare: error: ")


def test_offline_it_says_so(capsys):
    assert cli.run(["prefetch", "task=gsm8k"]) == 2
    assert "HF_HUB_OFFLINE=1: nothing can be fetched with it" in capsys.readouterr().err


def test_the_table_is_for_readers():
    assert [size_text(size) for size in (None, 0, 999, 1000, 93_400_000_000)] == [
        "unknown",
        "0 B",
        "999 B",
        "1.0 kB",
        "93.4 GB",
    ]
    seen = Entry(kind="model", name="org/big", revision="f" * 40, size=9_000_000_000, missing=2_000_000_000)
    assert table([seen]).splitlines()[1].split("  ")[-1] == "to fetch: 2.0 GB of it"


def test_why_a_download_failed():
    assert "no space left" in explain_failure(OSError(28, "No space left on device"), "a/b")
    assert "cannot be reached" in explain_failure(ConnectionError("what the library says"), "a/b")
    hidden = ValueError("Dataset 'a/b' is a gated dataset on the Hub. Visit its page")
    assert explain_failure(hidden, "a/b").startswith("gated: accept its licence")
    assert explain_failure(ValueError("model.id=a/b: BertModel is not an MoE"), "a/b") == "BertModel is not an MoE"


if __name__ == "__main__":  # the commands as they are installed, of this checkout
    from lynx_exp import cli as lynx_exp

    command, *rest = sys.argv[1:]
    sys.argv = [command, *rest]
    {"lynx-exp": lynx_exp.main, "lynx-prepare": cli.main}[command](rest)
