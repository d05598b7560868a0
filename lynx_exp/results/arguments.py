"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path

WHERE = "a study (results/STUDY), or any folder above or below"


def add_folder(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, help=WHERE)


def add_sandbox(verb: argparse.ArgumentParser) -> None:
    from lynx_exp.config import SANDBOXES

    verb.add_argument(
        "--sandbox",
        choices=SANDBOXES,
        help="where generated code runs again, if there is any (default: as each cell was run)",
    )
    verb.add_argument("--confirm-unsafe-code", action="store_true", help="needed for --sandbox unsafe")


def add_margin(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--margin",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="difference to vanilla that is tested for: is it within so many points? (default: 1)",
    )
