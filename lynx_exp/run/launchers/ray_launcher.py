"""`hydra/launcher=ray`: cells as tasks of a Ray cluster, one that is there or one of this machine alone."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_exp.config import Config, at_least
from lynx_exp.run.launchers.plugin import PLUGIN_MODULE, LauncherConf, LynxLauncher
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    import ray

    from lynx_exp.run.launchers.jobs import Work
    from lynx_exp.run.outcomes import Outcome, Report

_LOOPBACK = "127.0.0.1"
_STORE_BYTES = 100 * 2**20
"""Of the object store that is started here: only configs and outcomes go through it, never a tensor."""


@dataclass(kw_only=True)
class RayConf(LauncherConf):
    """Where the tasks run, and what each asks for. All machines see the results by the same path."""

    _target_: str = f"{PLUGIN_MODULE}.RayLauncher"
    jobs: int = 8
    """Tasks at most; cells that one model runs as packs stay in one task."""
    address: str | None = None
    """null starts Ray on this machine, on loopback, for this launch; `auto` or HOST:PORT joins a cluster."""
    num_cpus: float = 1.0
    """Cores of one task, and its threads unless OMP_NUM_THREADS or `threads` says otherwise."""
    num_gpus: float = 0.0
    """GPUs of one task. Without one, `device=auto` is the CPU."""
    folder: str | None = None
    """Of logs; null is `.ray` in the study's folder."""

    def __post_init__(self) -> None:
        at_least("hydra.launcher.jobs", self.jobs, 1)
        for name in ("num_cpus", "num_gpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"hydra.launcher.{name}={getattr(self, name):g}: must not be negative")


class RayLauncher(LynxLauncher):
    """Composes and checks all cells here, and runs them there."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(packed=fields["packed"])
        self.fields = fields  # checked later, where errors reach the user in their own words

    def run(self, configs: list[Config]) -> Report:
        from lynx_exp.run.launchers.cluster import run_on_cluster

        return run_on_cluster(configs, Ray(RayConf(**self.fields)), packed=self.packed)


def _logged(work: Work, log: Path) -> list[Outcome]:
    """In the task: `work`, with what it prints in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        return work()


class Ray:
    """A `Cluster`: one task a work. A task whose process dies is lost; it is not tried again behind one's back."""

    def __init__(self, conf: RayConf) -> None:
        self.conf = conf
        self.jobs = conf.jobs
        self.device = "cuda" if conf.num_gpus else "cpu"

    def logs(self, study: Path) -> Path:
        return study / ".ray" if self.conf.folder is None else Path(self.conf.folder)

    def submit(self, works: Sequence[Work], folder: Path) -> list[RayJob]:
        cores = os.cpu_count() or 1
        if self.conf.address is None and self.conf.num_cpus > cores:  # it would wait for ever
            raise ValueError(f"hydra.launcher.num_cpus={self.conf.num_cpus:g}: this machine has {cores}")
        where = self._where()
        try:
            import ray
        except ImportError as error:
            raise ValueError("hydra/launcher=ray: ray is missing: pip install '.[ray]'") from error

        terminated = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = self.conf.address or "null"
            raise ValueError(f"hydra.launcher.address={address}: {first_line(error)}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray took it
        if self.conf.address is None and any(node["NodeManagerAddress"] != _LOOPBACK for node in ray.nodes()):
            ray.shutdown()
            raise ValueError("hydra/launcher=ray: Ray does not keep to loopback here; give hydra.launcher.address")
        task = ray.remote(num_cpus=self.conf.num_cpus, num_gpus=self.conf.num_gpus, max_retries=0, max_calls=1)(_logged)
        logs = [folder / f"job-{number}.log" for number in range(len(works))]
        return [RayJob(task.remote(work, log), log) for work, log in zip(works, logs, strict=True)]

    def close(self) -> None:
        ray = sys.modules.get("ray")
        if ray is not None:
            ray.shutdown()

    def _where(self) -> dict[str, Any]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to Ray's makers
        if self.conf.address is not None:
            return {"address": self.conf.address}
        # Anyone who reaches a Ray port can run code. Ray keeps to loopback only where it takes clusters to be
        # impossible, and reads this when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        return {
            "address": "local",  # not one that happens to run here
            "_node_ip_address": _LOOPBACK,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }


class RayJob:
    """A Ray task as a `Job`."""

    def __init__(self, ref: ray.ObjectRef[list[Outcome]], log: Path) -> None:
        self._ref = ref
        self.log = log
        self.name = log.stem

    def done(self) -> bool:
        import ray

        ready, _ = ray.wait([self._ref], timeout=0)
        return bool(ready)

    def outcomes(self) -> list[Outcome]:
        import ray

        from lynx_exp.run.launchers.jobs import Lost

        try:
            return ray.get(self._ref)
        except ray.exceptions.RayTaskError as error:  # the task raised: its traceback, the exception last
            raise Lost(str(error).rstrip().splitlines()[-1].strip()) from error
        except ray.exceptions.RayError as error:
            raise Lost(f"{type(error).__name__}: {first_line(error)}") from error

    def cancel(self) -> None:
        import ray

        ray.cancel(self._ref)
