"""The command `lynx-exp`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

from lynx_exp.exits import BAD_INPUT, FAILED, INTERRUPTED, REQUEUE
from lynx_exp.run.interrupt import Preempted, check_wrapped, stoppable


def main(arguments: Sequence[str] | None = None) -> None:
    """`lynx-exp`: exits with 0 (all done), 1 (a cell failed), 2 (bad input, nothing was run), 75 (terminated:
    queue it again) or 130 (interrupted)."""
    try:
        with stoppable():  # before anything that takes time to import
            code = _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt as stop:
        code = _stopped(stop)
    sys.exit(code)


def _main(arguments: Sequence[str]) -> int:
    from lynx_exp.run import torchrun as ranks

    if not ranks.is_first_rank():
        from lynx_exp.run.run_cells import follow

        follow()
        return 0
    code = run(arguments)
    if code not in (INTERRUPTED, REQUEUE):
        ranks.dismiss()
    return code


def _stopped(stop: KeyboardInterrupt) -> int:
    requeue = isinstance(stop, Preempted)
    word, how = ("terminated", "queue the same command again") if requeue else ("interrupted", "run the same command")
    _say(str(stop) or f"{word}: nothing was begun; {how} to continue")
    return REQUEUE if requeue else INTERRUPTED


def run(arguments: Sequence[str]) -> int:
    """Run `lynx-exp ARGUMENTS`; the exit code. Bad input prints one line, or with HYDRA_FULL_ERROR=1 the traceback."""
    from lynx_exp.explain import explain
    from lynx_exp.own_analysis import protect
    from lynx_exp.run.threads import set_spin

    protect()
    set_spin()
    wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
    try:
        try:
            return _hydra(list(arguments))
        except Exception as error:
            check_wrapped(error)
            raise
    except KeyboardInterrupt as stop:
        return _stopped(stop)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left (| head)
        return 0
    except Exception as error:
        line = explain(error, arguments)
        if line is None or wants_trace:
            raise
        _say(f"error: {line}")
        return BAD_INPUT
    finally:
        if not wants_trace:
            del os.environ["HYDRA_FULL_ERROR"]


def _say(line: str) -> None:
    print(f"lynx-exp: {line}", file=sys.stderr)


def _hydra(arguments: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.main import get_args_parser
    from omegaconf import DictConfig

    import lynx_exp
    from lynx_exp.config import config_folder, to_config
    from lynx_exp.prepare import on_demand
    from lynx_exp.run import first_steps
    from lynx_exp.run.launchers import plugin
    from lynx_exp.run.launchers.register import register
    from lynx_exp.run.sweeper.raw_arguments import prepared
    from lynx_exp.temporary import check_temporary_folder

    if arguments == ["--version"]:
        print(f"lynx-exp {lynx_exp.__version__} (hydra {hydra.__version__})")
        return 0
    arguments = prepared(arguments)
    register()
    first_steps.make_by(on_demand.make)
    asked = get_args_parser().parse_args(arguments)
    if asked.help:
        from lynx_exp.help import page

        print(page(asked.overrides))
        return 0
    check_temporary_folder()
    plugin.LynxLauncher.report = None
    code = 0
    problem: Exception | None = None

    def one_cell(composed: DictConfig) -> None:
        nonlocal code, problem
        try:
            hydra_config = cast(DictConfig, HydraConfig.get())
            plugin.check_hydra(hydra_config)
            plugin.check_scale_of_a_cell(hydra_config)
            from lynx_exp.run.run_cells import run_cells

            config = to_config(composed)
            if config.plan_seeds > 1:
                raise ValueError(f"plan_seeds={config.plan_seeds}: is many cells; add -m, or give one as plan_seed=0")
            code = FAILED if run_cells([config]).failed else 0
        except Exception as error:  # Hydra would print it with its own words
            problem = error

    before = sys.argv
    sys.argv = ["lynx-exp", *arguments]
    try:
        hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(one_cell)()
    except SystemExit as stop:  # --hydra-help and its like
        if stop.code not in (None, 0):
            raise
        return 0
    finally:
        sys.argv = before
    if problem is not None:
        raise problem
    report = plugin.LynxLauncher.report
    return FAILED if report is not None and report.failed else code


if __name__ == "__main__":
    main()
