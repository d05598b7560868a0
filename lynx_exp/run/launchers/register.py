"""Makes the schema and the plugins known to Hydra."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from lynx_exp.config import Config, config_folder
from lynx_exp.extensions import task_names
from lynx_exp.run.launchers.plugin import (
    PLUGIN_MODULE,
    LauncherConf,
    LynxLauncher,
    LynxSweeper,
    SweeperConf,
    SweepsSearchPath,
)
from lynx_exp.run.launchers.published import PublishedSource
from lynx_exp.run.launchers.ray_launcher import RayConf, RayLauncher
from lynx_exp.run.launchers.slurm_launcher import SlurmConf, SlurmLauncher


def register() -> None:
    """Make the schema and the plugins known to Hydra. Harmless when called again."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config, provider="lynx")
    store.store(group="hydra/launcher", name="packed", node=LauncherConf, provider="lynx")
    store.store(group="hydra/launcher", name="one_by_one", node=LauncherConf(packed=False), provider="lynx")
    for conf_name, conf in (("slurm", SlurmConf), ("ray", RayConf)):
        # conf/config.yaml says hydra/launcher=packed, which a file of sweeps/cluster cannot override, only extend
        for group in ("hydra/launcher", "hydra/cluster"):
            store.store(group=group, name=conf_name, node=conf, provider="lynx")
    store.store(group="hydra/sweeper", name="lynx", node=SweeperConf, provider="lynx")
    for task in task_names():
        if not (config_folder() / "task" / f"{task}.yaml").is_file():
            store.store(group="task", name=task, node={"name": task, "subtasks": [task]}, provider="lynx")
    package, _, name = PLUGIN_MODULE.rpartition(".")
    try:
        parent = import_module(package)  # other plugins may be installed there
    except ImportError:
        parent = sys.modules[package] = ModuleType(package)
        parent.__path__ = []  # Hydra walks the package
    module = sys.modules[PLUGIN_MODULE] = ModuleType(PLUGIN_MODULE)
    setattr(parent, name, module)
    launchers = (LynxLauncher, SlurmLauncher, RayLauncher)
    for cls in (*launchers, LynxSweeper):
        cls.__module__ = PLUGIN_MODULE
        setattr(module, cls.__name__, cls)
    for plugin in (SweepsSearchPath, PublishedSource, *launchers, LynxSweeper):
        Plugins.instance().register(plugin)
