"""Cells as cluster jobs: on a fake cluster, in submitit's local processes, on Ray on loopback."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

from lynx_exp import cli
from lynx_exp.config import Config, ModelConfig, config_folder
from lynx_exp.run.interrupt import Interrupted
from lynx_exp.run.launchers import jobs as jobs_module
from lynx_exp.run.launchers.cluster import deal, run_on_cluster
from lynx_exp.run.launchers.jobs import Lost, Work
from lynx_exp.run.launchers.ray_launcher import Ray, RayConf
from lynx_exp.run.launchers.register import register
from lynx_exp.run.launchers.slurm_launcher import Slurm, SlurmConf, _reason
from lynx_exp.run.outcomes import Outcome
from lynx_exp.run.prepare_cells import prepare_cells

LYNX = {"name": "lynx", "alpha": 3.0, "beta": 2, "min_batch": 2}


def files_of(folder: Path) -> dict[str, bytes]:
    """What a cell found: everything but when, where and how it was run."""
    told = ("status.json", "provenance.json", "DONE", "config.yaml")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in told}


@dataclass
class FakeJob:
    """Queued at the first look, started at the second, ended at the third."""

    name: str
    log: Path
    run: Callable[[], list[Outcome]]
    looks: int = 0
    cancelled: bool = False

    def done(self) -> bool:
        self.looks += 1
        if self.looks == 2:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.touch()
        return self.looks > 2 or self.cancelled

    def outcomes(self) -> list[Outcome]:
        return self.run()

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeCluster:
    """Runs every work in this process. Of job `lost` it runs one cell, then loses it."""

    bench: Any
    jobs: int = 8
    device: str | None = "cpu"
    lost: int | None = None
    refuses: bool = False
    works: list[Work] = field(default_factory=list)
    submitted: list[FakeJob] = field(default_factory=list)
    closed: int = 0

    def logs(self, study: Path) -> Path:
        return study / ".fake"

    def submit(self, works: Sequence[Work], folder: Path) -> list[FakeJob]:
        if self.refuses:
            raise ValueError("no such partition")
        self.works = list(works)
        self.submitted = [
            FakeJob(f"job {number}", folder / f"{number}.log", lambda number=number: self._run(number))
            for number in range(len(works))
        ]
        return self.submitted

    def _run(self, number: int) -> list[Outcome]:
        configs = self.works[number].configs
        if number != self.lost:
            return self.bench.run(configs).outcomes
        self.bench.run(configs[:1])
        raise Lost("node 3 is gone")

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def launch(bench: Any) -> Any:
    """`launch(configs, cluster)`; `launch.text()` is what it printed."""
    out = StringIO()

    def run(configs: Sequence[Config], cluster: FakeCluster) -> Any:
        return run_on_cluster(configs, cluster, console=Console(file=out, width=200), load=bench.load, poll_s=0.0)

    run.text = out.getvalue  # type: ignore[attr-defined]
    return run


@pytest.fixture
def grid(config: Any) -> list[Config]:
    """Three groups: five documents, three documents, another seed; of the first two policies."""
    return [config(), config(LYNX), config(limit=3), config(LYNX, seed=1)]


def test_the_largest_groups_are_dealt_first_to_the_least_loaded(bench, config):
    sizes = {seed: size for seed, size in enumerate([3, 9, 4, 8])}
    groups = [[cell] for cell in prepare_cells([config(seed=s, limit=n) for s, n in sizes.items()], bench.load)]
    dealt = [[cell.config.limit for cell in chunk] for chunk in deal(groups, 2)]
    assert dealt == [[9, 3], [8, 4]]
    assert [len(chunk) for chunk in deal(groups, 9)] == [1, 1, 1, 1]
    assert deal([], 3) == []


def test_the_records_are_those_of_the_launcher_that_runs_here(bench, launch, grid, tmp_path):
    here = {outcome.folder.name: files_of(outcome.folder) for outcome in bench.run(grid).outcomes}
    (tmp_path / "results").rename(tmp_path / "before")
    cluster = FakeCluster(bench, jobs=2)
    report = launch([*grid, grid[0]], cluster)
    assert [outcome.state for outcome in report.outcomes] == ["done"] * 5 and not report.failed
    assert {outcome.folder.name: files_of(outcome.folder) for outcome in report.outcomes} == here
    assert len(cluster.works) == 2 and cluster.closed == 1
    lines = launch.text().splitlines()
    assert lines[0] == "jobs: 2 queued, 0 running, 0 done; cells: 0 of 4 done"
    assert lines[1] == "jobs: 0 queued, 2 running, 0 done; cells: 0 of 4 done"
    assert lines[-4] == "jobs: 0 queued, 0 running, 2 done; cells: 4 of 4 done"
    study = f"{tmp_path}/results/default"
    assert lines[-3] == f"4 cells: 4 done, 0 skipped, 0 failed; in {study}"
    assert lines[-2] == f"next: lynx-results table {study}; lynx-results report {study}"
    assert lines[-1].startswith("next: 1 of them without vanilla on their plan"), "that of the other seed"


def test_finished_cells_are_not_submitted(bench, launch, grid):
    bench.run(grid[:2])
    cluster = FakeCluster(bench)
    report = launch(grid, cluster)
    assert [outcome.state for outcome in report.outcomes] == ["skipped", "skipped", "done", "done"]
    assert sum(len(work.configs) for work in cluster.works) == 2
    again = FakeCluster(bench)
    assert {outcome.state for outcome in launch(grid, again).outcomes} == {"skipped"}
    assert again.works == [] and again.closed == 0


def test_then_is_for_the_launcher(bench, launch, config, monkeypatch):
    import analysis

    studies = []
    monkeypatch.setattr(analysis, "print_table", lambda study, console: studies.append(study))
    cluster = FakeCluster(bench)
    launch([config(then=["table"]), config(seed=1, then=["table"])], cluster)
    assert [config.then for work in cluster.works for config in work.configs] == [[], []]
    assert len(studies) == 1


def test_a_lost_job_costs_what_it_had_not_done(bench, launch, grid):
    cluster = FakeCluster(bench, lost=0)
    report = launch(grid, cluster)
    assert [outcome.state for outcome in report.outcomes] == ["done", "failed", "done", "done"]
    assert report.failed == 1
    log = cluster.submitted[0].log
    assert report.outcomes[1].error == f"job 0 was lost: node 3 is gone; log: {log}"
    assert f"failed: {report.outcomes[1].folder}: job 0 was lost" in launch.text()
    assert {o.state for o in launch(grid, FakeCluster(bench)).outcomes} == {"skipped", "done"}, "and is done again"


def test_ctrl_c_cancels_what_has_not_ended(bench, launch, grid):
    cluster = FakeCluster(bench)
    run, calls = cluster._run, []

    def stop(number: int) -> list[Outcome]:
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(number)

    cluster._run = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="2 of 4 cells done and kept, the jobs are cancelled; run the same"):
        launch(grid, cluster)
    assert [job.cancelled for job in cluster.submitted] == [False, False, True] and cluster.closed == 1


def test_bad_input_submits_nothing(bench, launch, config):
    cluster = FakeCluster(bench)
    with pytest.raises(ValueError, match="keep_experts=5: must lie in 2..4"):
        launch([config(), config({"name": "lynx_v1_latency", "keep_experts": 5})], cluster)
    assert cluster.works == []
    with pytest.raises(ValueError, match="no such partition"):
        launch([config()], FakeCluster(bench, refuses=True))


def test_a_job_takes_the_device_that_the_launcher_counted_on(bench, launch, config):
    cluster = FakeCluster(bench)
    auto = config()
    auto.device = "auto"
    launch([auto], cluster)
    assert cluster.works[0].configs[0].device == "cpu"
    assert Slurm(SlurmConf()).device == "cpu" and Slurm(SlurmConf(gpus_per_node=1)).device == "cuda"
    assert Slurm(SlurmConf(additional_parameters={"gres": "gpu:h100:1"})).device == "cuda"
    assert Slurm(SlurmConf(cluster="debug")).device is None
    assert Ray(RayConf(num_gpus=0.5)).device == "cuda" and Ray(RayConf()).device == "cpu"


def test_a_work_is_pickled_and_requeued_whole(config, tmp_path):
    work = Work(configs=[config(LYNX)], folders=[tmp_path], working_folder=tmp_path, command=["lynx-exp"])
    assert pickle.loads(pickle.dumps(work)) == work
    assert work.checkpoint().function is work


def test_a_model_that_cannot_be_loaded_costs_its_own_cells(config, tmp_path, monkeypatch):
    def run_cells(configs: Sequence[Config], **_more: Any) -> Any:
        if configs[0].model.id == "broken":
            raise ValueError("model.id=broken: no weights")
        done = [Outcome(state="done", folder=Path(str(config.seed))) for config in configs]
        return type("Report", (), {"outcomes": done})

    monkeypatch.setattr(jobs_module, "run_cells", run_cells)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.chdir(tmp_path)
    broken = ModelConfig(kind="hub", id="broken")
    configs = [config(seed=0), config(seed=1, model=broken), config(seed=2)]
    folders = [Path(str(number)) for number in range(3)]
    outcomes = Work(configs=configs, folders=folders, working_folder=tmp_path, command=["lynx-exp", "-m"])()
    assert [outcome.state for outcome in outcomes] == ["done", "failed", "done"]
    assert [outcome.folder for outcome in outcomes] == folders
    assert outcomes[1].error == "model.id=broken: no weights" and sys.argv == ["lynx-exp", "-m"]


@pytest.mark.parametrize(("cluster", "package"), [(Slurm(SlurmConf()), "submitit"), (Ray(RayConf()), "ray")])
def test_a_missing_package_is_one_line(cluster, package, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # restored afterwards
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"submitit": "slurm"}.get(package, package)
    with pytest.raises(ValueError, match=rf"{package} is missing: pip install '\.\[{extra}\]'"):
        cluster.submit([], tmp_path)


def test_fields_of_the_launchers_are_checked(monkeypatch):
    with pytest.raises(ValueError, match="hydra.launcher.cluster=pbs: must be one of slurm, local, debug"):
        SlurmConf(cluster="pbs")
    with pytest.raises(ValueError, match="hydra.launcher.jobs=0: must be at least 1"):
        RayConf(jobs=0)
    with pytest.raises(ValueError, match="hydra.launcher.num_gpus=-1: must not be negative"):
        RayConf(num_gpus=-1)
    with pytest.raises(ValueError, match="num_cpus=9999: this machine has"):
        Ray(RayConf(num_cpus=9999)).submit([], Path())


def test_what_submitit_is_asked_for(tmp_path):
    submitit = pytest.importorskip("submitit")
    conf = SlurmConf(partition="gpu", gpus_per_node=2, mem_gb=1.5, setup=["module load x"], timeout_min=9)
    parameters = Slurm(conf)._parameters()
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="local")
    executor.update_parameters(**parameters)  # checks names and types of Slurm's too
    assert parameters["slurm_partition"] == "gpu" and parameters["slurm_setup"] == ["module load x"]
    assert parameters["gpus_per_node"] == 2 and "slurm_additional_parameters" not in parameters


def test_a_refusal_of_the_cluster_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match='Could not detect "srun".*hydra.launcher.cluster=local needs no Slurm$'):
        Slurm(SlurmConf()).submit([], tmp_path)


def test_why_a_submitit_job_was_lost_fits_a_line():
    dashes = "-" * 22
    failed = (
        f"Job (task=0) failed during processing with trace:\n{dashes}\nTraceback:\n  x\nOSError: full\n\n{dashes}\nYou"
    )
    assert _reason(failed) == "OSError: full"
    assert _reason("Job 7 with path x\nhas not produced any output (state: NODE_FAIL)\n") == (
        "it left no result (state NODE_FAIL)"
    )
    assert _reason("\nsomething else\nmore") == "something else"


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_a_launcher_is_chosen_by_its_name_or_by_a_cluster(name):
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        plain = compose("config", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
        chosen = compose("config", overrides=[f"+cluster={name}", "hydra.launcher.jobs=3"], return_hydra_config=True)
    assert plain.hydra.launcher.jobs == 8 and plain.hydra.mode is None
    assert chosen.hydra.launcher._target_ == plain.hydra.launcher._target_
    assert chosen.hydra.launcher.jobs == 3 and chosen.hydra.mode.name == "MULTIRUN"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["slurm", "hydra.launcher.cluster=local"], ["ray"]], ids=lambda words: words[0])
def test_real_jobs_write_the_bytes_of_this_process(launcher, tmp_path, monkeypatch, capfd):
    if find_spec({"slurm": "submitit"}.get(launcher[0], launcher[0])) is None:
        pytest.skip("not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray, not imported yet, reads it; restored afterwards
    words = ["-m", "model=random", "task=mini_gsm8k,mini_truthfulqa", "limit=3", "policy=vanilla,lynx", "batch_size=2"]
    assert cli.run([*words, "results=here"]) == 0
    there = [*words, "results=there", "hydra.launcher.jobs=2", f"hydra/launcher={launcher[0]}", *launcher[1:]]
    assert cli.run(there) == 0
    out = capfd.readouterr().out
    assert "jobs: 0 queued, 0 running, 2 done; cells: 4 of 4 done" in out
    assert "4 cells: 4 done, 0 skipped, 0 failed; in there/default" in out
    here = {done.parent.name: files_of(done.parent) for done in (tmp_path / "here").rglob("DONE")}
    assert len(here) == 4 and all("responses.parquet" in files for files in here.values())
    assert {done.parent.name: files_of(done.parent) for done in (tmp_path / "there").rglob("DONE")} == here
    assert cli.run(there) == 0
    assert "4 cells: 0 done, 4 skipped, 0 failed" in capfd.readouterr().out
