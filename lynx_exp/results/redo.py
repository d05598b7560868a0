"""What is done to every finished cell in turn, from its stored responses."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from lynx_exp.exits import FAILED
from lynx_exp.results.main import describe_os_error, print_stderr
from lynx_exp.results.selected_cells import finished
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from lynx_exp.store.read import CellRecord


def for_every_cell(
    args: argparse.Namespace, act: Callable[[CellRecord], object], *, allow_changed: Collection[str] = ()
) -> int:
    """Call `act` for each finished cell and print a line each; one that fails stops no other.

    `allow_changed`: as in `read_cells`. Returns the exit code.
    """
    from lynx_exp.tasks.run_programs import ExecutionError

    if args.sandbox == "unsafe" and not args.confirm_unsafe_code:
        raise ValueError("--sandbox unsafe runs what a model wrote with your rights; add --confirm-unsafe-code")
    found = finished(args.folder, allow_changed=allow_changed)
    records, failed = found.cells, found.set_aside
    for number, record in enumerate(records, 1):
        head = f"{number}/{len(records)} {record.path.name}"
        try:
            print(f"{head}: {act(record)}", flush=True)
        except (ValueError, ExecutionError) as error:
            failed += 1
            print_stderr(f"{head}: error: {first_line(error)}")
        except OSError as error:
            failed += 1
            print_stderr(f"{head}: error: {describe_os_error(error)}")
    return FAILED if failed else 0
