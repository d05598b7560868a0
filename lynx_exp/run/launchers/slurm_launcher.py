"""`hydra/launcher=slurm`: cells as jobs of a Slurm cluster, through submitit, which requeues preempted ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_exp.config import Config, at_least, one_of
from lynx_exp.run.launchers.plugin import PLUGIN_MODULE, LauncherConf, LynxLauncher
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    import submitit

    from lynx_exp.run.launchers.jobs import Work
    from lynx_exp.run.outcomes import Outcome, Report

CLUSTERS = ("slurm", "local", "debug")


@dataclass(kw_only=True)
class SlurmConf(LauncherConf):
    """What each job asks for. Where a field is null, the cluster decides."""

    _target_: str = f"{PLUGIN_MODULE}.SlurmLauncher"
    _convert_: str = "all"
    jobs: int = 8
    """Cluster jobs at most; cells that one model runs as packs stay in one job."""
    cluster: str = "slurm"
    """slurm; local: processes on this machine, all at once; debug: in this process, one after the other."""
    folder: str | None = None
    """Of logs and pickles, seen by all machines; null is `.submitit` in the study's folder."""
    timeout_min: int = 240
    """Minutes of one attempt. A job that needs more is requeued and continues, as after a preemption, 3 times."""
    partition: str | None = None
    """Partition of the jobs; null is the cluster's default."""
    account: str | None = None
    """Account that is charged; null is the user's own."""
    gpus_per_node: int | None = None
    """GPUs of one job. Without one, `device=auto` is the CPU."""
    cpus_per_task: int | None = None
    """Cores of one job; null is the cluster's default."""
    mem_gb: float | None = None
    """Memory of one job, in GB; null is the cluster's default."""
    array_parallelism: int = 256
    """Jobs that run at one time, at most."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before Python starts, as `module load cuda`. Slurm only."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Of sbatch, by their long names: `{qos: high, constraint: h100}`."""

    def __post_init__(self) -> None:
        one_of("hydra.launcher.cluster", self.cluster, CLUSTERS)
        for name in ("jobs", "timeout_min", "array_parallelism"):
            at_least(f"hydra.launcher.{name}", getattr(self, name), 1)


class SlurmLauncher(LynxLauncher):
    """Composes and checks all cells here, and runs them there."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(packed=fields["packed"])
        self.fields = fields  # checked later, where errors reach the user in their own words

    def run(self, configs: list[Config]) -> Report:
        from lynx_exp.run.launchers.cluster import run_on_cluster

        return run_on_cluster(configs, Slurm(SlurmConf(**self.fields)), packed=self.packed)


class Slurm:
    """A `Cluster`: one job array, whose jobs call their `Work`."""

    def __init__(self, conf: SlurmConf) -> None:
        self.conf = conf
        self.jobs = conf.jobs

    @property
    def device(self) -> str | None:
        if self.conf.cluster == "debug":
            return None
        asked = " ".join(f"{key}={value}" for key, value in self.conf.additional_parameters.items())
        return "cuda" if self.conf.gpus_per_node or "gpu" in asked else "cpu"

    def logs(self, study: Path) -> Path:
        return study / ".submitit" if self.conf.folder is None else Path(self.conf.folder)

    def submit(self, works: Sequence[Work], folder: Path) -> list[SlurmJob]:
        try:
            import submitit
        except ImportError as error:
            raise ValueError("hydra/launcher=slurm: submitit is missing: pip install '.[slurm]'") from error

        logging.getLogger("submitit").setLevel(logging.CRITICAL)  # sacct's hiccups, between the lines of the progress
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.conf.cluster)
            executor.update_parameters(**self._parameters())
            return [SlurmJob(job) for job in executor.submit_array(list(works))]
        except (RuntimeError, OSError) as error:  # no Slurm here, or sbatch's own words
            hint = "" if self.conf.cluster != "slurm" else "; hydra.launcher.cluster=local needs no Slurm"
            raise ValueError(f"hydra/launcher=slurm: {first_line(error)}{hint}") from error

    def close(self) -> None:
        """Jobs were cancelled or have ended."""

    def _parameters(self) -> dict[str, object]:
        """In submitit's words: with `slurm_` what only Slurm knows. It drops what is None."""
        fields = asdict(self.conf)
        shared = {key: fields[key] for key in ("timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb")}
        own = ("partition", "account", "array_parallelism", "setup", "additional_parameters")
        given = {f"slurm_{key}": fields[key] for key in own if fields[key] not in ([], {})}
        return {"name": "lynx-exp", "stderr_to_stdout": True} | shared | given


class SlurmJob:
    """A submitit job as a `Job`."""

    def __init__(self, job: submitit.Job[list[Outcome]]) -> None:
        self._job = job

    @property
    def name(self) -> str:
        return f"job {self._job.job_id}"

    @property
    def log(self) -> Path:
        return self._job.paths.stdout

    def done(self) -> bool:
        return self._job.done()

    def outcomes(self) -> list[Outcome]:
        from submitit.core.utils import UncompletedJobError

        from lynx_exp.run.launchers.jobs import Lost

        try:
            return self._job.result()
        except UncompletedJobError as error:
            raise Lost(_reason(str(error))) from error
        except Exception as error:  # a result that cannot be read
            raise Lost(f"{type(error).__name__}: {first_line(error)}") from error

    def cancel(self) -> None:
        self._job.cancel(check=False)


def _reason(text: str) -> str:
    """One line of submitit's many: the exception of a job that raised one, else the state that it ended in."""
    trace = re.search(r"failed during processing with trace:\n-+\n(.*?)\n-{20,}\n", text, re.DOTALL)
    if trace:
        return trace[1].rstrip().splitlines()[-1].strip()
    state = re.search(r"\(state: (.*?)\)", text)
    return f"it left no result (state {state[1]})" if state else first_line(text) or "no reason given"
