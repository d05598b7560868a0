"""`plan=true`: what would be run, what it would take, and what is not here yet. Nothing is run and no weights load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lynx_exp.config import config_folder
from lynx_exp.run.checkpoint_lines import checkpoint_lines
from lynx_exp.run.cost_estimate import Throughput, memory_of
from lynx_exp.run.declared_task import DeclaredTask
from lynx_exp.run.packs import pack_groups
from lynx_exp.run.published_parameters import published_lines
from lynx_exp.run.roofline import hardware_lines
from lynx_exp.run.run_progress import clock
from lynx_exp.run.skip_rules import Refusals
from lynx_exp.store.claims import holder_of, is_held
from lynx_exp.store.read import is_done
from lynx_exp.wording import counted

if TYPE_CHECKING:
    from lynx_exp.run.planned_cell import Cell

_MOST_PACKS = 50
"""That are named one by one."""
_FAR = 10
"""Times the requests that an estimate comes from: beyond, a run's fixed costs are most of what it knows."""
_MOST_NAMED = 12
"""Cells of a pack that are named one by one."""


def print_plan(cells: Sequence[Cell], console: Console, *, packed: bool) -> None:
    """`cells`: each once."""
    for line in plan_lines(cells, packed=packed):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def plan_lines(cells: Sequence[Cell], *, packed: bool) -> Iterator[str]:
    refusals, done, todo, refused, held = Refusals(cells), 0, [], [], []
    for cell in cells:
        # in the order in which a run would look at them, so that both say the same of each cell
        if is_done(cell.folder):
            done += 1
        elif (reason := refusals.reason(cell)) is not None:
            refused.append(f"  {cell.name}: {reason}")
        else:
            todo.append(cell)
            if is_held(cell.folder):
                held.append(f"  {cell.name}: {holder_of(cell.folder) or 'another process'} is at it")
    left = f"{done} done, {len(todo)} to run, {len(refused)} left alone"
    yield f"{counted(len(cells), 'cell')}: {left}; in {_studies(cells)}"
    yield from refused
    yield from held
    if not todo:
        yield "nothing to run"
        return
    packs = pack_groups(todo) if packed else [[cell] for cell in todo]
    named = cells[0].config.hardware.is_named
    hardware = cells[0].config.hardware
    # times of this machine say nothing about a named one: only cells that ran on the same card may speak
    folders = () if named and not hardware.reported else dict.fromkeys(Path(cell.config.results) for cell in cells)
    times = Throughput(folders, gpu=hardware.reported if named else "")
    for number, pack in enumerate(packs[:_MOST_PACKS], 1):
        yield from _pack_lines(f"pack {number}/{len(packs)}", pack, times)
    if len(packs) > _MOST_PACKS:
        rest = [cell for pack in packs[_MOST_PACKS:] for cell in pack]
        requests = sum(map(_requests, rest))
        more = f"{counted(len(rest), 'cell')}, {counted(requests, 'request')}"
        yield f"and {counted(len(packs) - _MOST_PACKS, 'pack')} more: {more}"
    if not named or any(times.seconds(cell) is not None for cell in todo):
        yield _time(todo, times)
    # by the weights' digest: two names of the same checkout are loaded once, and need their memory once
    models: dict[str, list[Cell]] = {}
    for cell in todo:
        models.setdefault(cell.model.digest, []).append(cell)
    for cells in models.values():
        cell = cells[-1]
        if named:
            yield from hardware_lines(cells, _positions(cells))
        else:
            yield _memory(cell, cells)
        yield from _missing(cell)
        yield from checkpoint_lines(cells)
        yield from published_lines(cells)
    yield from _documents(todo)
    yield from _to_measure(todo)
    yield "nothing was run (plan=true)"


def _studies(cells: Sequence[Cell]) -> str:
    return ", ".join(str(study) for study in dict.fromkeys(cell.study for cell in cells))


def _pack_lines(head: str, pack: Sequence[Cell], times: Throughput) -> Iterator[str]:
    first, requests = pack[0], sum(_requests(cell) for cell in pack)
    known = [times.seconds(cell) for cell in pack]
    total = sum(seconds for seconds in known if seconds is not None) if None not in known else None
    about = f", about {clock(total)}" if total is not None else ""
    many = f"{counted(len(pack), 'cell')}, {counted(requests, 'request')}"
    yield f"{head}: {first.model.name}, {first.config.task.name}: {many}{about}"
    for cell in pack[:_MOST_NAMED]:
        yield f"  {cell.name}, {counted(_requests(cell), 'request')}{_begun(cell)}"
    if len(pack) > _MOST_NAMED:
        rest = Counter(cell.config.policy_name for cell in pack[_MOST_NAMED:])
        yield f"  and {len(pack) - _MOST_NAMED} more: " + ", ".join(f"{count} {name}" for name, count in rest.items())


def _requests(cell: Cell) -> int:
    return sum(len(task.requests) for task in cell.tasks)


def _begun(cell: Cell) -> str:
    lanes = len(list((cell.folder / "lanes").glob("*.json"))) if cell.folder.is_dir() else 0
    return f", continues after {counted(lanes, 'lane')}" if lanes else ""


def _time(todo: Sequence[Cell], times: Throughput) -> str:
    known = [seconds for cell in todo if (seconds := times.seconds(cell)) is not None]
    if not known:
        named = ", ".join(path.stem for path in sorted(config_folder().glob("hardware/*.yaml")) if path.stem != "here")
        return (
            "time: unknown; no cell of these models has been run here on such a device; hardware=NAME gives a roofline "
            f"({named})"
        )
    unknown = len(todo) - len(known)
    more = f", and {counted(unknown, 'cell')} of which nothing is known" if unknown else ""
    cells = counted(times.cells, "finished cell")
    stretch = max(map(times.stretch, todo))
    devices = todo[0].config.hardware.devices
    hours = f" ({sum(known) * devices / 3600:.3g} GPU hours)" if todo[0].device == "cuda" else ""
    coarse = f"; likely less: {stretch:.0f} times as many requests as those had" if stretch > _FAR else ""
    return f"time: {'at most' if coarse else 'about'} {clock(sum(known))}{hours}{more}, by what {cells} took{coarse}"


def _memory(cell: Cell, together: Sequence[Cell]) -> str:
    positions = _positions(together)
    memory = memory_of(cell, positions)
    if memory is None:
        return f"memory: {cell.model.name}: its size cannot be told from its configuration"
    need = f"memory: {cell.model.name} in {cell.dtype}: weights {memory.weights:.2f} GiB, "
    need += f"a row of up to {positions} positions {1024 * memory.keys_and_values:.1f} MiB"
    fit = memory.rows_that_fit
    if memory.available is None or fit is None:
        return f"{need}; {cell.device}: not looked at from here"
    widest = max(other.config.batch_size for other in together)
    verdict = (
        f"fits, {min(fit, memory.rows)} rows at once"
        if fit >= widest
        else f"DOES NOT FIT: room for {fit} rows, batch_size={widest}"
    )
    return f"{need}; {cell.device} has {memory.available:.1f} GiB: {verdict}"


def _positions(cells: Sequence[Cell]) -> int:
    """Of the longest row, at most."""
    tasks = {id(task): task for cell in cells for task in cell.tasks}.values()
    return max(_tokens(request.prompt) + request.max_new_tokens for task in tasks for request in task.requests)


def _tokens(text: str) -> int:
    """At most: a token is a byte or more."""
    return len(text.encode())


def _documents(cells: Sequence[Cell]) -> Iterator[str]:
    """Tasks whose documents are not here."""
    tasks = {member.name: member for cell in cells for task in cell.tasks for member in task.members}
    names = [name for name, task in tasks.items() if isinstance(task, DeclaredTask)]
    if names:
        yield (
            f"to download: the documents of {', '.join(names)}, whose number and lengths are here as their files "
            "declare them; `lynx-prepare prefetch` with the same arguments fetches them"
        )


def _to_measure(cells: Sequence[Cell]) -> Iterator[str]:
    """What policies must know first."""
    for reason, count in Counter(cell.lacks for cell in cells if cell.lacks is not None).items():
        yield f"to measure before {counted(count, 'cell')} can run: {reason}"


def _missing(cell: Cell) -> Iterator[str]:
    """Weights that are neither in a folder nor in the hub's cache."""
    model = cell.config.model
    if model.kind != "hub" or Path(model.id).expanduser().is_dir():
        return
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if not any(isinstance(try_to_load_from_cache(model.id, name, revision=model.revision), str) for name in names):
        known = "the shape that its preset declares" if cell.model.declared else "its configuration"
        yield (
            f"to download: the weights of {model.id}, which are not in the hub's cache (its size above is by {known}); "
            "`lynx-prepare prefetch` with the same arguments fetches them"
        )
