"""The command `lynx-prepare`: `train` makes the bundled model, or one like it."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_exp.prepare.train import TrainConfig

BAD_INPUT = 2
INTERRUPTED = 130
LINE_EVERY = 100
"""Steps between two lines where there is no terminal for a bar."""


def main(arguments: Sequence[str] | None = None) -> None:
    """`lynx-prepare`: exits with 0, 2 (bad input) or 130 (interrupted)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run `lynx-prepare ARGUMENTS`; the exit code."""
    from lynx_exp.config import config_folder

    recipe = config_folder() / "train.yaml"
    parser = argparse.ArgumentParser(
        prog="lynx-prepare",
        description="What comes before a run.",
        epilog="Examples:\n  lynx-prepare train\n  lynx-prepare train out=runs/mine steps=200 num_experts=8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="train")
    train = verbs.add_parser(
        "train",
        help="train an MoE on the mini tasks; the defaults make lynx_tiny (about half an hour on 2 CPU cores)",
        description="Train an MoE on the mini tasks. The same command again continues from the last checkpoint.",
        epilog=f"Fields and their defaults:\n\n{recipe.read_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the recipe")
    asked = parser.parse_args(list(arguments))
    try:
        _train(asked.overrides)
    except KeyboardInterrupt:
        print("lynx-prepare: interrupted; run the same command to continue from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from lynx_exp.explain import explain

        line = explain(error, asked.overrides, config_name="train")
        if line is None:
            raise
        print(f"lynx-prepare: error: {line}", file=sys.stderr)
        return BAD_INPUT
    return 0


def read_recipe(overrides: Sequence[str]) -> tuple[TrainConfig, Path]:
    """(recipe, output folder) from `conf/train.yaml` and overrides. ValueError or a Hydra error for a bad one."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from lynx_exp.config import config_folder

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose("train", overrides=list(overrides))
    values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
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
            config, out, _shown(console, config.steps, lambda step, text: bar.update(task, completed=step, losses=text))
        )
    console.print(f"{out}: model, tokenizer and recipe.json; run it with model=hub model.id={out}", highlight=False)


def _shown(console: Any, steps: int, update: Callable[[int, str], None]) -> Callable[[int, dict[str, float]], None]:
    """A callback for `train`: losses of each task in the bar, or a line now and then."""
    from time import monotonic

    from lynx_exp.launch.progress import clock

    first: list[tuple[int, float]] = []

    def on_step(step: int, losses: dict[str, float]) -> None:
        first.append((step, monotonic())) if not first else None
        text = " ".join(
            f"{task.removeprefix('mini_')} {loss:.3f}" for task, loss in losses.items() if not math.isnan(loss)
        )
        update(step, text)
        if not console.is_terminal and (step % LINE_EVERY == 0 or step == steps):
            begun, since = first[0]
            left = (monotonic() - since) / (step - begun) * (steps - step) if step > begun else None
            console.print(f"step {step}/{steps}: loss {text}, ETA {clock(left)}", highlight=False)

    return on_step
