"""The texts of prompts, which cells store as hashes: made anew from the task's data."""

from __future__ import annotations

from collections.abc import Sequence

from lynx_exp.run.load_tasks import LoadTask
from lynx_exp.run.replay.finished_cells import open_stored
from lynx_exp.store.identity import digest
from lynx_exp.store.read import CellRecord
from lynx_exp.store.tables import prompt_hash
from lynx_exp.tasks.load_task import load_task
from lynx_exp.wording import first_line


def prompts_of(records: Sequence[CellRecord], *, load: LoadTask = load_task) -> tuple[dict[str, str], list[str]]:
    """(prompts by their hash, a line for each task that cannot be asked again). Cells that were asked the same are
    opened once."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    opened: set[str] = set()
    for record in records:
        data_digest = digest(record.provenance.get("data_sha256", {}))
        if data_digest in opened:
            continue
        try:
            tasks = open_stored(record, load=load).tasks
        except ValueError as error:
            missing.setdefault(data_digest, f"{record.info['task']}: {first_line(error)}")
            continue
        opened.add(data_digest)
        missing.pop(data_digest, None)
        for task in tasks:
            found |= {prompt_hash(one.prompt): one.prompt for one in task.requests}
    return found, list(missing.values())
