"""The command `lynx-prepare`: `train` makes the bundled model, or one like it; `calibrate` measures any model for the
policies that need it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lynx_exp.prepare.calibrate import CalibrateConfig
    from lynx_exp.prepare.train import TrainConfig
    from lynx_exp.routing import Calibration

CALIBRATE_HELP = """\
Measure what some policies must know of a model before they run, and write it to one small file:

  sere   how alike the outputs of any two experts are (similarity: cosine, frobenius, cka)
  naee   how a router's scores fall off from rank to rank (the median ratio of each to the first)
  lexi   what each layer loses by running fewer experts (on random hidden states)

The texts of `data` go through the plain model once; on each layer's inputs every expert runs. The file goes to
calibrations/MODEL.safetensors, where those policies find it (calibration=auto), or to out=FILE (calibration=FILE).
Another model's file is refused, by a hash of its routers. lynx_tiny has its file in the package.

  lynx-prepare calibrate model=mixtral_8x7b data=web.jsonl
  lynx-prepare calibrate model=hub model.id=PATH_OR_HUB_ID data=web.txt sequences=200 dtype=bfloat16
  lynx-exp model=mixtral_8x7b policy=sere

Ctrl-C leaves what was there before. Equal commands write equal bytes."""
BAD_INPUT = 2
INTERRUPTED = 130
INTERRUPTED_LINE = {
    "train": "interrupted; run the same command to continue from the last checkpoint",
    "calibrate": "interrupted; nothing was written",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """`lynx-prepare`: exits with 0, 2 (bad input) or 130 (interrupted)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run `lynx-prepare ARGUMENTS`; the exit code."""
    from lynx_exp.config import config_folder

    parser = argparse.ArgumentParser(
        prog="lynx-prepare",
        description="What comes before a run.",
        epilog="Examples:\n  lynx-prepare train\n  lynx-prepare train out=runs/mine steps=200 num_experts=8\n"
        "  lynx-prepare calibrate model=olmoe_1b_7b data=web.jsonl\n\n"
        "Exit codes: 0 done, 2 bad input, 130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="train|calibrate")
    train = verbs.add_parser(
        "train",
        help="train an MoE on the mini tasks; the defaults make lynx_tiny (about half an hour on 2 CPU cores)",
        description="Train an MoE on the mini tasks. The same command again continues from the last checkpoint.",
        epilog=f"Fields and their defaults:\n\n{(config_folder() / 'train.yaml').read_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the recipe")
    calibrate = verbs.add_parser(
        "calibrate",
        help="measure a model's experts for the policies sere, naee and lexi (a minute for lynx_tiny)",
        description=CALIBRATE_HELP,
        epilog=f"Fields and their defaults:\n\n{(config_folder() / 'calibrate.yaml').read_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="the model, the data and how much of it")
    asked = parser.parse_args(list(arguments))
    try:
        {"train": _train, "calibrate": _calibrate}[asked.verb](asked.overrides)
    except KeyboardInterrupt:
        print(f"lynx-prepare: {INTERRUPTED_LINE[asked.verb]}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from lynx_exp.explain import explain

        line = explain(error, asked.overrides, config_name=asked.verb)
        if line is None:
            raise
        print(f"lynx-prepare: error: {line}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """`conf/NAME.yaml` with overrides. A Hydra error for a bad one."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lynx_exp.config import config_folder

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def read_recipe(overrides: Sequence[str]) -> tuple[TrainConfig, Path]:
    """(recipe, output folder) from `conf/train.yaml` and overrides. ValueError or a Hydra error for a bad one."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(_composed("train", overrides), resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    out = Path(str(values.pop("out"))).expanduser()

    from lynx_exp.prepare.train import TrainConfig

    defaults = TrainConfig()
    checked = {f.name: _typed(f.name, values[f.name], getattr(defaults, f.name)) for f in fields(TrainConfig)}
    return TrainConfig(**checked), out


def _typed(name: str, value: Any, default: Any) -> Any:
    """`value` if it is of the default's type (an integer also where a float is due); ValueError otherwise."""
    if isinstance(default, dict):
        if not isinstance(value, dict) or set(value) != set(default):
            raise ValueError(f"{name}={value}: must give a share for each of {', '.join(default)}")
        return {key: _typed(f"{name}.{key}", value[key], default[key]) for key in default}
    allowed = (int, float) if isinstance(default, float) else (type(default),)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name}={value}: must be {'a number' if isinstance(default, float) else 'an integer'}")
    return float(value) if isinstance(default, float) else value


def _train(overrides: Sequence[str]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    config, out = read_recipe(overrides)
    if (out / "recipe.json").exists():
        raise ValueError(f"out={out}: holds a trained model already; delete it, or name another folder")
    from transformers.utils.logging import disable_progress_bar

    from lynx_exp.prepare.progress import train_callback
    from lynx_exp.prepare.train import train

    disable_progress_bar()  # this run has its own
    console = Console(soft_wrap=True)
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[losses]}"),
        TextColumn("ETA"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=config.steps, losses="")
        train(
            config,
            out,
            train_callback(console, config.steps, lambda step, text: bar.update(task, completed=step, losses=text)),
        )
    console.print(f"{out}: model, tokenizer and recipe.json; run it with model=hub model.id={out}", highlight=False)


def read_calibration(overrides: Sequence[str]) -> CalibrateConfig:
    """What to calibrate, from `conf/calibrate.yaml` and overrides. ValueError or a Hydra error for a bad one."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from lynx_exp.prepare.calibrate import CalibrateConfig

    ConfigStore.instance().store("calibrate_schema", CalibrateConfig)
    config = OmegaConf.to_object(_composed("calibrate", overrides))
    assert isinstance(config, CalibrateConfig)
    return config


def _calibrate(overrides: Sequence[str]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from lynx_exp.prepare.calibrate import calibrate
    from lynx_exp.prepare.progress import calibrate_callback

    config = read_calibration(overrides)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # this run has its own
    console = Console(soft_wrap=True)
    columns = (TextColumn("calibrating"), BarColumn(), TaskProgressColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        update = partial(bar.update, bar.add_task("", total=None))
        measured = calibrate(config, calibrate_callback(console, update))
    out = config.file()
    measured.save(out)
    console.print(f"{out}: {_what(measured)}; {_use(config, out)}", highlight=False, markup=False)


def _what(measured: Calibration) -> str:
    layers, experts = measured.similarity["cosine"].shape[:2]
    return f"{layers} layers of {experts} experts, measured on {measured.provenance['tokens']} tokens"


def _use(config: CalibrateConfig, out: Path) -> str:
    from lynx_exp.models import find_calibration

    auto = None if config.model.kind == "random" else find_calibration(config.model.id)
    if auto is not None and Path(auto).samefile(out):
        return "sere, naee and lexi of this model take it from here on"
    return f"use it with policy.calibration={out}"
