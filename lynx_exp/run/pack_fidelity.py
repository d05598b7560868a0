"""Compares the policies of a pack with vanilla, token by token, on vanilla's own responses.

`run_pack` calls it when all responses of the pack are on disk. The cells of a group share one vanilla pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lynx_exp.run.attempt import Attempt
from lynx_exp.run.run_progress import Progress
from lynx_exp.run.vanilla_references import References, fidelity_rows

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine


def groups_for_fidelity(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """Group the cells that are to be compared with vanilla by the vanilla pass that they can share.

    They must have the same batch size, and so the same lanes. A policy that acts on prompts needs prompts and responses
    in the same pass, which can change the last bits of the logits; such cells form a group of their own, so that
    vanilla runs in the same way as they do.
    """
    groups: dict[tuple[int, bool], list[Attempt]] = {}
    for attempt in attempts:
        if attempt.compares or attempt.cell.config.tokens:
            prefills = attempt.phases in ("prefill", "both")
            groups.setdefault((attempt.cell.config.batch_size, prefills), []).append(attempt)
    return list(groups.values())


def measure_fidelity(
    attempts: Sequence[Attempt], engine: LaneEngine, references: References, progress: Progress
) -> None:
    """Fill in the fidelity rows of one group, its results per token, and the time that each policy's selection takes.

    Args:
        attempts: One group of `groups_for_fidelity`.
        engine: Has the cells' model loaded.
        references: Vanilla responses, which are the continuations to compare on.
        progress: Advances by one for each cell.
    """
    # empty at each try: an earlier one may have failed half way, and its rows must not appear twice
    for attempt in attempts:
        attempt.fidelity = [] if attempt.compares else None
        attempt.tokens = [] if attempt.cell.config.tokens else None
    per_token = [number for number, attempt in enumerate(attempts) if attempt.tokens is not None]
    first = attempts[0]
    policies = [(attempt.policy, attempt.phases, attempt.cell.config.layers) for attempt in attempts]
    for task in first.cell.tasks:
        requests, plan = first.requests[task.name], first.plans[task.name]
        continued = references.continued(first.cell, task, engine, requests, plan, "fidelity")
        for number, row, tokens in fidelity_rows(engine, policies, task, continued, plan, per_token):
            attempt = attempts[number]
            if attempt.fidelity is not None:
                attempt.fidelity.append(row)
            if attempt.tokens is not None and tokens is not None:
                attempt.tokens.append(tokens)
    for attempt in attempts:
        if attempt.policy is None or not attempt.compares:
            continue
        first_task = attempt.cell.tasks[0].name
        plan = attempt.plans[first_task]
        prompts = [attempt.requests[first_task][number].prompt_ids for number in plan.lanes[0][: plan.widest]]
        attempt.extra["selection_us"] = engine.selection_time(attempt.policy, prompts)
        progress.advance(attempt.cell, ("fidelity", attempt.cell.config.batch_size), 1)
