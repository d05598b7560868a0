"""What can go."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder
from lynx_exp.results.main import print_stderr
from lynx_exp.wording import as_bytes, counted

if TYPE_CHECKING:
    from lynx_exp.store.leftovers import Item

HELP = "list what may be deleted, with sizes and reasons; --delete deletes it"
DESCRIPTION = """\
Files of killed writes, damaged lanes that were set aside, claims of processes that are gone, journals of finished
cells, and unfinished cells of other code that no sweep of this code asks for. Deletes nothing unless told to; never
touches a cell that somebody works on, and no finished cell without --superseded."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument("--delete", action="store_true", help="delete what is listed")
    verb.add_argument(
        "--superseded",
        action="store_true",
        help="also finished cells of other code for which a newer cell of the same config, weights and documents "
        "is done",
    )
    verb.add_argument("--all", action="store_true", help="also stack traces (error.txt) of failed cells")


def run(args: argparse.Namespace) -> int:
    from lynx_exp.store.leftovers import KINDS, find_leftovers

    found = find_leftovers(args.folder)
    left_out = {"superseded": not args.superseded, "trace": not args.all}
    chosen = [item for item in found if not left_out.get(item.kind, False)]
    whole = {item.path for item in chosen if item.path == item.cell}
    chosen = [item for item in chosen if item.path in whole or item.cell not in whole]  # what goes with its cell
    sizes = {item.path: item.size for item in found}
    for item in chosen:
        print(f"{as_bytes(sizes[item.path]):>10}  {item.path}: {KINDS[item.kind]}")
    deleted = _delete(chosen) if args.delete else []
    total = f"{counted(len(chosen), 'item')}, {as_bytes(sum(sizes[item.path] for item in chosen))}"
    if args.delete:
        print(f"deleted {len(deleted)} of {total}")
    else:
        print(f"{total}; nothing is deleted without --delete" if chosen else "nothing to delete")
    for kind, option in (("superseded", "--superseded"), ("trace", "--all")):
        more = [item for item in found if item.kind == kind and item not in chosen]
        if more:
            size = as_bytes(sum(sizes[item.path] for item in more))
            print(f"with {option} {counted(len(more), 'item')} more, {size}: {KINDS[more[0].kind]}")
    return FAILED if args.delete and len(deleted) < len(chosen) else 0


def _delete(items: Sequence[Item]) -> list[Item]:
    from lynx_exp.store.claims import Claims
    from lynx_exp.store.leftovers import delete

    claims, deleted = Claims(), []
    try:
        for item in items:
            try:
                if delete(item, claims):
                    deleted.append(item)
                else:
                    print_stderr(f"{item.path}: left alone: somebody works on its cell by now")
            except OSError as error:
                print_stderr(f"error: {item.path}: cannot be deleted: {error.strerror or error}")
    finally:
        claims.close()
    return deleted
