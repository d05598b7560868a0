"""The command line of `lynx-prepare`, for work that comes before a run.

`train` trains the bundled model or a variant, `calibrate` measures a model for the policies that need it, `prefetch`
downloads the models and data of a sweep, and `lm-eval-task` writes a task with local data for lm-eval's own command.
This module parses arguments and reports errors; each verb imports its own module only when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_exp.exits import BAD_INPUT, INTERRUPTED
from lynx_exp.prepare.interrupted import INTERRUPTED_LINE
from lynx_exp.temporary import check_temporary_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lynx_exp.prepare.calibrate import CalibrateConfig
    from lynx_exp.prepare.train import TrainConfig
    from lynx_exp.routing import Calibration
    from lynx_exp.routing.alignment import Alignment
    from lynx_exp.routing.budgets import Budgets

CALIBRATE_HELP = """\
Measure what some policies must know of a model before they run, and write it to one small file:

  sere   how alike the outputs of any two experts are (similarity: cosine, frobenius, cka)
  naee   how a router's scores fall off from rank to rank (the median ratio of each to the first)
  lexi   what each layer loses by running fewer experts (on random hidden states)
  static_mask   how much each expert matters (mean weight times output norm, where a token is routed to it)
  any policy with protect=calibrated   which experts give the largest outputs (no policy takes them from a token)

The texts of `data` go through the plain model once; on each layer's inputs every expert runs. The file goes to
calibrations/MODEL.safetensors, where those policies find it (calibration=auto), or to out=FILE (calibration=FILE).
Another model's file is refused, by a hash of its routers. lynx_tiny has its file in the package.

  lynx-prepare calibrate model=mixtral_8x7b data=web.jsonl
  lynx-prepare calibrate model=hub model.id=PATH_OR_HUB_ID data=web.txt sequences=200 dtype=bfloat16
  lynx-exp model=mixtral_8x7b policy=sere

With policy=NAME and its parameters it measures an alignment instead: by how much that policy, with these parameters,
moves and widens each layer's output on the texts, which policy.weights=affine undoes. Another policy, other parameters
or another model are refused, by hash, and so is another batch_size.

  lynx-prepare calibrate policy=xshare policy.budget=5 batch_size=16
  lynx-exp policy=xshare policy.budget=5 policy.weights=affine batch_size=16

With policy.per_layer=calibrated as well, it measures what each layer costs (KL from vanilla) at each of the policy's
budgets; the run then gives every layer its own, their mean the budget that it is given.

  lynx-prepare calibrate policy=xshare policy.per_layer=calibrated sequences=64
  lynx-exp policy=xshare policy.per_layer=calibrated policy.budget=5 batch_size=16

Ctrl-C leaves what was there before. Equal commands write equal bytes."""
PREFETCH_HELP = """\
Download every model and data set that `lynx-exp` would need for the same arguments, so that it then runs on a machine
without a network. Give what you give `lynx-exp`: a cell, -m with lists, a study.

  lynx-prepare prefetch model=olmoe_1b_7b task=gsm8k
  lynx-prepare prefetch -m model=mixtral_8x7b,qwen3_30b_a3b task=gsm8k,humaneval
  lynx-prepare prefetch +study=matched_active model=olmoe_1b_7b task=truthfulqa
  lynx-prepare prefetch --dry-run model=mixtral_8x7b task=wmt16 task.revision=COMMIT
  HF_HUB_OFFLINE=1 lynx-exp model=olmoe_1b_7b task=gsm8k

Each is fetched once, however many cells use it: of a model its configuration, tokenizer and safetensors (code only with
model.trust_remote_code=true), of a task all splits of its data set. Everything goes to huggingface's own cache, HF_HOME
(~/.cache/huggingface): set it to a folder that both machines see, or copy that folder. lynx_tiny, random models, models
in folders, the mini tasks and task.data=FILE_OR_FOLDER need nothing.

A gated model: accept its licence on its page of the hub, and log in with `hf auth login` (or set HF_TOKEN).
Ctrl-C keeps the files that are complete; the same command fetches the others."""
LM_EVAL_TASK_HELP = """\
Write FOLDER/TASK.yaml: lm-eval's own definition of a task, its documents from local files, so that lm-eval's command
needs no hub either:

  lynx-prepare lm-eval-task humaneval HumanEval.jsonl.gz local-tasks
  lm_eval --model lynx --model_args pretrained=lynx_tiny,policy=lynx --tasks humaneval --include_path local-tasks \\
    --confirm_run_unsafe_code

The file names where things lie on this machine."""
CONFIG_NAMES = {"prefetch": "config"}
"""The configuration of verbs whose arguments are not the fields of `conf/VERB.yaml`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lynx-prepare` and exit with 0, 2 (bad input) or 130 (interrupted)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run `lynx-prepare` without leaving the process.

    Args:
        arguments: The verb and its arguments.

    Returns:
        The exit code: 0, 2 (bad input) or 130 (interrupted).
    """
    verb, rest = list(arguments[:1]), sorted(arguments[1:], key=lambda argument: not argument.startswith("-"))
    options = _parser().parse_args([*verb, *rest])  # sorted, because argparse needs flags first and lynx-exp does not
    try:
        check_temporary_folder()
        options.act(options)
    except KeyboardInterrupt:
        print(f"lynx-prepare: {INTERRUPTED_LINE[options.verb]}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from lynx_exp.explain import explain

        line = explain(error, options.overrides, config_name=CONFIG_NAMES.get(options.verb, options.verb))
        if line is None:
            raise
        print(f"lynx-prepare: error: {line}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    """The parser. The subparser of a verb sets `act`, the function that runs it."""
    from lynx_exp.config import config_folder

    parser = argparse.ArgumentParser(
        prog="lynx-prepare",
        description="What comes before a run.",
        epilog="Examples:\n  lynx-prepare train\n  lynx-prepare train out=runs/mine steps=200 num_experts=8\n"
        "  lynx-prepare calibrate model=olmoe_1b_7b data=web.jsonl\n"
        "  lynx-prepare prefetch model=olmoe_1b_7b task=gsm8k\n\n"
        "Exit codes: 0 done, 2 bad input, 130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="|".join(INTERRUPTED_LINE))
    train = verbs.add_parser(
        "train",
        help="train an MoE on the mini tasks; the defaults make lynx_tiny (about half an hour on 2 CPU cores)",
        description="Train an MoE on the mini tasks. The same command again continues from the last checkpoint.",
        epilog=f"Fields and their defaults:\n\n{(config_folder() / 'train.yaml').read_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the recipe")
    train.set_defaults(act=_train)
    calibrate = verbs.add_parser(
        "calibrate",
        help="measure a model for sere, naee, lexi, static_mask, or policy.weights=affine (a minute for lynx_tiny)",
        description=CALIBRATE_HELP,
        epilog=f"Fields and their defaults:\n\n{(config_folder() / 'calibrate.yaml').read_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="the model, the data and how much of it")
    calibrate.set_defaults(act=_calibrate)
    prefetch = verbs.add_parser(
        "prefetch",
        help="download the models and data sets of a sweep, for machines without a network",
        description=PREFETCH_HELP,
        epilog="Exit codes: 0 all is there, 2 bad input or something could not be fetched (the rest is), 130 stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prefetch.add_argument("-m", "--multirun", action="store_true", help="lists are sweeps, as in lynx-exp")
    prefetch.add_argument("--dry-run", action="store_true", help="only list what would be fetched, and its size")
    prefetch.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="the arguments of lynx-exp")
    prefetch.set_defaults(act=_prefetch)
    lm_eval_task = verbs.add_parser(
        "lm-eval-task",
        help="write a task's definition with local documents, for lm-eval's own command",
        description=LM_EVAL_TASK_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    lm_eval_task.add_argument("task", help="a name that lm-eval knows, such as gsm8k or truthfulqa_mc1")
    lm_eval_task.add_argument("data", help="a file, or a folder of files, as in task.data= of lynx-exp")
    lm_eval_task.add_argument("folder", type=Path, help="where to write TASK.yaml")
    lm_eval_task.set_defaults(act=_lm_eval_task, overrides=[])
    return parser


def _lm_eval_task(options: argparse.Namespace) -> None:
    from lynx_exp.tasks.lm_eval_yaml import write_lm_eval_task

    print(write_lm_eval_task(options.task, options.data, options.folder))


def _composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose `conf/NAME.yaml` with overrides; a bad one raises a Hydra error."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from lynx_exp.config import config_folder
    from lynx_exp.run.sweeper.raw_arguments import with_open_fields

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(name, overrides=with_open_fields(overrides))


def read_recipe(overrides: Sequence[str]) -> tuple[TrainConfig, Path]:
    """Compose the arguments of `lynx-prepare train`.

    Args:
        overrides: FIELD=VALUE arguments.

    Returns:
        (recipe, output folder).

    Raises:
        ValueError: A field is unknown or has a bad value; Hydra's own errors for bad syntax.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(_composed("train", overrides), resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    out = Path(str(values.pop("out"))).expanduser()

    from lynx_exp.config import did_you_mean
    from lynx_exp.prepare.train import TrainConfig

    known = [f.name for f in fields(TrainConfig)]
    unknown = next((str(name) for name in values if name not in known), None)
    if unknown is not None:
        hint = did_you_mean(unknown, known)
        raise ValueError(f"{unknown}={values[unknown]}: unknown field; known: {', '.join(known)}{hint}")

    defaults = TrainConfig()
    checked = {f.name: _typed(f.name, values[f.name], getattr(defaults, f.name)) for f in fields(TrainConfig)}
    return TrainConfig(**checked), out


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value, if it has the type of the default; an integer is also a valid float. Otherwise raise ValueError."""
    if isinstance(default, dict):
        if not isinstance(value, dict) or set(value) != set(default):
            raise ValueError(f"{name}={value}: must give a share for each of {', '.join(default)}")
        return {key: _typed(f"{name}.{key}", value[key], default[key]) for key in default}
    allowed = (int, float) if isinstance(default, float) else (type(default),)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name}={value}: must be {'a number' if isinstance(default, float) else 'an integer'}")
    return float(value) if isinstance(default, float) else value


def _check_writable(out: Path) -> None:
    """Raise ValueError for an output that cannot be written, instead of failing after hours of work."""
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(above, os.W_OK) or (above != out and not above.is_dir()):
        raise ValueError(f"out={out}: cannot be written to")


def _train(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    config, out = read_recipe(options.overrides)
    if (out / "recipe.json").exists():
        raise ValueError(f"out={out}: holds a trained model already; delete it, or name another folder")
    _check_writable(out)
    from transformers.utils.logging import disable_progress_bar

    from lynx_exp.prepare.prepare_progress import train_callback
    from lynx_exp.prepare.train import train

    disable_progress_bar()  # of transformers; this command shows its own
    console = Console(emoji=False, soft_wrap=True)
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
    made = f"{out}: model, tokenizer and recipe.json; run it with model=hub model.id={out}"
    console.print(made, highlight=False, markup=False)


def read_calibration(overrides: Sequence[str]) -> CalibrateConfig:
    """Compose the arguments of `lynx-prepare calibrate`.

    Args:
        overrides: FIELD=VALUE arguments.

    Returns:
        The model, the data and what to measure.

    Raises:
        ValueError: A field is unknown or has a bad value; Hydra's own errors for bad syntax.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from lynx_exp.config import refuse_unknown
    from lynx_exp.prepare.calibrate import CalibrateConfig

    ConfigStore.instance().store("calibrate_schema", CalibrateConfig)
    composed = _composed("calibrate", overrides)
    refuse_unknown(composed)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, CalibrateConfig)
    return config


def _calibrate(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from lynx_exp.prepare.calibrate import calibrate, measure_policy
    from lynx_exp.prepare.prepare_progress import calibrate_callback
    from lynx_exp.routing.alignment import Alignment
    from lynx_exp.routing.budgets import Budgets

    config = read_calibration(options.overrides)
    if config.policy is None:
        _check_writable(config.file())
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers; this command shows its own
    console = Console(emoji=False, soft_wrap=True)
    columns = (TextColumn("calibrating"), BarColumn(), TaskProgressColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        update = partial(bar.update, bar.add_task("", total=None))
        callback = calibrate_callback(console, update)
        measured = calibrate(config, callback) if config.policy is None else measure_policy(config, callback)
    if isinstance(measured, Budgets):
        measured.save(measured.file())
        layers, budgets = measured.divergence.shape
        made = f"{measured.file()}: {measured.provenance['policy']}, {layers} layers at {budgets} budgets each"
        use = _use_alone(measured, "policy.per_layer=calibrated")
        console.print(f"{made}; {use}", highlight=False, markup=False)
        return
    if isinstance(measured, Alignment):
        measured.save(measured.file())
        rows = measured.provenance["changed_rows"]
        made = f"{measured.file()}: {measured.provenance['policy']}, measured where it changed rows ({rows} by layer)"
        use = _use_alone(measured, "policy.weights=affine")
        console.print(f"{made}; {use}", highlight=False, markup=False)
        return
    out = config.file()
    measured.save(out)
    console.print(f"{out}: {_summary(measured)}; {_use(config, out)}", highlight=False, markup=False)


def _summary(measured: Calibration) -> str:
    """One line on what was measured."""
    from lynx_exp.routing.ops.protect import super_experts

    layers, experts = measured.similarity["cosine"].shape[:2]
    assert measured.largest is not None
    protected = [f"{layer}:{e}" for layer, ids in enumerate(super_experts(measured.largest)) for e in ids]
    return (
        f"{layers} layers of {experts} experts, measured on {measured.provenance['tokens']} tokens; protect=calibrated "
        f"names {', '.join(protected) or 'none'} (layer:expert)"
    )


def _use(config: CalibrateConfig, out: Path) -> str:
    """How to use the file: policies find it by themselves where `find_calibration` looks for it."""
    from lynx_exp.models import find_calibration

    auto = None if config.model.kind == "random" else find_calibration(config.model.id)
    if auto is not None and Path(auto).samefile(out):
        return "sere, naee, lexi and static_mask of this model take it from here on"
    return f"use it with policy.calibration={out}"


def _use_alone(measured: Alignment | Budgets, option: str) -> str:
    """How to use what was measured for a policy; of several for one size of batches, a run takes none."""
    file, size = measured.file(), measured.provenance["batch_size"]
    of_policy_and_model, kind = file.name.rpartition("-")[0], "".join(file.suffixes[-2:])
    others = sorted(path for path in file.parent.glob(f"{of_policy_and_model}*{kind}") if path != file)
    others = [path for path in others if type(measured).load(path).provenance.get("batch_size") == size]
    if not others:
        return f"use it with {option} batch_size={size}"
    return f"{option} takes it once {', '.join(map(str, others))}, of other texts, is somewhere else"


def _prefetch(options: argparse.Namespace) -> None:
    from lynx_exp.prepare.prefetch import prefetch

    prefetch(options.overrides, multirun=options.multirun, dry_run=options.dry_run)
