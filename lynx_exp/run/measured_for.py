"""What was measured for a cell's policy: the alignment of weights=affine, the budgets of per_layer=calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lynx_exp.config import Config

if TYPE_CHECKING:
    from lynx_exp.routing import Policy
    from lynx_exp.routing.alignment import Alignment
    from lynx_exp.routing.budgets import Budgets

Taken: TypeAlias = "list[tuple[Path, Alignment | Budgets]]"
"""Files, and what they hold."""


def is_aligned(policy: Policy) -> bool:
    """Whether the policy takes an alignment, in one layer at least."""
    return any(part.weights == "affine" for part in getattr(policy, "policies", (policy,)))


def check_aligned(config: Config, policy: Policy) -> None:
    """ValueError for weights=affine where it cannot be."""
    if not is_aligned(policy):
        return
    if config.backend == "vllm":
        raise ValueError(f"{policy.name}: weights=affine: only with backend=transformers")
    if config.model.parallel is not None:
        raise ValueError(f"{policy.name}: weights=affine: not with model.parallel={config.model.parallel}")
    if config.match_active is not None:
        raise ValueError(
            f"{policy.name}: weights=affine: is measured for fixed parameters; give those that match_active found"
        )


def measured_for(policy: Policy, model_digest: str) -> Taken:
    """What the policy takes, from the folder of such files; empty, if it takes nothing of the kind.

    Args:
        policy: It knows the size of its batches (`for_batches`).
        model_digest: Of the model's files.

    Returns:
        The one that was measured on this model in such batches; where none says that it is of this model, all that may
        have been in such batches: `bind` then refuses them, or knows the same weights in another file.

    Raises:
        NotMeasured: There is none, or it was in other batches.
        ValueError: There are several, or one cannot be read.
    """
    from lynx_exp.routing.alignment import Alignment, files_for
    from lynx_exp.routing.budgets import Budgets, budget_files, check_budgets
    from lynx_exp.routing.calibration import typed
    from lynx_exp.routing.measured_file import fits, the_only_one

    check_budgets(policy)
    held: Taken
    if is_aligned(policy):
        who, held = "weights=affine", [(file, Alignment.load(file)) for file in files_for(policy)]
    elif policy.per_layer is not None:
        who, held = "per_layer=calibrated", [(file, Budgets.load(file)) for file in budget_files(policy)]
    else:
        return []
    of_model = [pair for pair in held if pair[1].provenance.get("model_digest") == model_digest]
    own = the_only_one(f"{policy.name}: {who}", of_model, policy.of_batch_size, typed(policy))
    if own is not None:
        return [own]
    if fitting := [pair for pair in held if fits(pair[1].provenance, policy.of_batch_size)]:
        return fitting
    the_only_one(f"{policy.name}: {who}", held, policy.of_batch_size, typed(policy))  # says of which batches they are
    return []


def unsaid_batches(config: Config, taken: Taken) -> str | None:
    """What the record says where a file does not say in which batches it was measured."""
    unsaid = [file.name for file, measured in taken if "batch_size" not in measured.provenance]
    if not unsaid:
        return None
    return f"{', '.join(unsaid)}: does not say in batches of which size; taken for batches of {config.batch_size}"
