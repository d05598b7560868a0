"""What is done to every finished cell in turn, from its stored responses."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from lynx_exp.exits import FAILED
from lynx_exp.results.selected_cells import finished
from lynx_exp.results.main import first_line, of_system, say

if TYPE_CHECKING:
    from lynx_exp.store.read import CellRecord


def for_every_cell(
    asked: argparse.Namespace, act: Callable[[CellRecord], object], *, besides: Collection[str] = ()
) -> int:
    """A line each as it is done; one that cannot be stops no other. `besides`: files that need not be those of DONE."""
    from lynx_exp.tasks.run_programs import ExecutionError

    if asked.sandbox == "unsafe" and not asked.confirm_unsafe_code:
        raise ValueError("--sandbox unsafe runs what a model wrote with your rights; add --confirm-unsafe-code")
    found = finished(asked.folder, besides=besides)
    records, failed = found.cells, found.aside
    for number, record in enumerate(records, 1):
        head = f"{number}/{len(records)} {record.path.name}"
        try:
            print(f"{head}: {act(record)}", flush=True)
        except (ValueError, ExecutionError) as error:
            failed += 1
            say(f"{head}: error: {first_line(error)}")
        except OSError as error:
            failed += 1
            say(f"{head}: error: {of_system(error)}")
    return FAILED if failed else 0
