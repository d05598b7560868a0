"""The arguments of `lynx-exp` before Hydra reads them: flags that it does not have, folders that it must not make, and
`layers=0,4:8`, which is one value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

FOLDERS = ("hydra.run", "hydra.sweep", "hydra.output_subdir", "hydra.job.chdir")
"""Where Hydra would work and write. A cell's folder is named by its content instead."""

_SEVERAL_LAYERS = re.compile(r"layers=([-\d:\s]+(?:,[-\d:\s]+)+)")
_OF_ARCHITECTURE = re.compile(r"^model\.config\.")
"""Fields of an architecture's configuration are its own: there is no telling those that are there from new ones."""


_OF_GENERATION = re.compile(r"^task\.generation=(?=[\w,]+$)")
"""One word in place of the node: whose settings count."""


def with_open_fields(arguments: Sequence[str]) -> list[str]:
    """`model.config.FIELD=VALUE` as Hydra takes it whether or not the preset has the field; `task.generation=model` as
    the field that it means."""
    opened = [_OF_ARCHITECTURE.sub("++model.config.", argument) for argument in arguments]
    return [_OF_GENERATION.sub("task.generation.source=", argument) for argument in opened]


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them. ValueError for what it would not, or what has no effect here."""
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))  # argparse wants it first
    _check_flags(arguments)
    for argument in arguments:
        if argument.startswith("~"):
            raise ValueError(f"{argument}: no field can be taken away; give {argument[1:].partition('=')[0]}=VALUE")
        key = argument.lstrip("+~").partition("=")[0]
        if any(key == name or key.startswith(f"{name}.") for name in FOLDERS):
            refuse_folder(argument)
        if key == "model.published" or key.startswith("model.published."):
            raise ValueError(f"{argument}: is for presets to say; for this run give policy.PARAMETER=VALUE")
        if key == "hydra":
            raise ValueError(f"{argument}: give the fields of hydra one by one, as in hydra.launcher.FIELD=VALUE")
    arguments = with_open_fields(arguments)
    if any(argument in ("-m", "--multirun") for argument in arguments):
        return arguments  # a list is one cell for each of its values, as with every field
    return [
        _SEVERAL_LAYERS.sub(r"layers='\1'", argument) if _SEVERAL_LAYERS.fullmatch(argument) else argument
        for argument in arguments
    ]


def refuse_folder(given: str) -> NoReturn:
    raise ValueError(
        f"{given}: has no effect here, where a cell's folder is named by its content; give results=FOLDER and "
        "study_name=NAME"
    )


def _check_flags(arguments: list[str]) -> None:
    """ValueError for a flag that Hydra does not have: its own parser would print its whole usage."""
    from hydra.main import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        for argument in arguments:
            if re.fullmatch(r"--[a-z][\w.]*=.+", argument) and argument in message:
                raise ValueError(f"{argument}: fields have no dashes; did you mean {argument[2:]}?")
        raise ValueError(f"{message}; see lynx-exp --help")

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(arguments)
