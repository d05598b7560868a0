"""A Weights & Biases workspace or report of what was logged."""

from __future__ import annotations

import argparse
import json

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder
from lynx_exp.results.main import print_stderr
from lynx_exp.results.selected_cells import finished

HELP = "make a Weights & Biases workspace (or report) of the cells"
DESCRIPTION = """\
Makes a workspace in the project that the cells were logged to, with panels for what a policy costs and saves, scores,
active experts by decode step, latency and answers, filtered to the studies of FOLDER. Needs wandb-workspaces
(pip install '.[dashboard]') and a server; with --json none: it is printed instead."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument("--report", action="store_true", help="a report instead of a workspace")
    verb.add_argument("--project", metavar="NAME", help="where the cells are (default: their tracker.project)")
    verb.add_argument("--entity", metavar="NAME", help="user or team (default: their tracker.entity, or your own)")
    verb.add_argument("--json", action="store_true", help="print what would be saved; needs no server")


def run(args: argparse.Namespace) -> int:
    from lynx_exp.results.sync import place_of
    from lynx_exp.tracking.wandb_dashboard import Kind, PanelData, build
    from lynx_exp.tracking.wandb_runs import one_line

    found = finished(args.folder)
    records = found.cells
    place = place_of(records[0], args, mode="online")
    entity = place.entity or ("" if args.json else _own_entity())
    kind: Kind = "report" if args.report else "workspace"
    made = build(kind, PanelData.of(records), entity=entity, project=place.project, printed=args.json)
    if args.json:
        print(json.dumps(made._to_model().model_dump(by_alias=True, exclude_none=True, mode="json"), indent=1))
        return found.code
    try:
        made.save()  # type: ignore[no-untyped-call]  # a workspace's says nothing of what it gives
    except Exception as error:  # of wandb, wandb-workspaces or the network: they have no common class
        print_stderr(f"error: wandb: {one_line(error)}")
        return FAILED
    print(made.url)
    return found.code


def _own_entity() -> str:
    import wandb

    from lynx_exp.tracking.wandb_runs import one_line

    try:
        entity = wandb.Api(timeout=20).default_entity
    except Exception as error:
        raise ValueError(f"wandb: {one_line(error)}; log in (wandb login), or print with --json") from error
    if not entity:
        raise ValueError("wandb names no entity of yours; give --entity")
    return str(entity)
