"""`first=[calibrate]`: what the policies of a sweep take from a model and nobody has measured yet is measured before
cells are checked, so that a study is one command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lynx_exp.config import Config
from lynx_exp.run.measured_for import is_aligned, measured_for
from lynx_exp.run.model_facts import known_facts
from lynx_exp.run.one_form import in_one_form
from lynx_exp.store.identity import digest

if TYPE_CHECKING:
    from lynx_exp.routing import Policy

Make = Callable[[Config, bool], list[Path]]
"""(config, whether what its policy alone takes is wanted, else facts of its model) -> the files that it wrote."""

_make: Make | None = None


def make_by(make: Make) -> None:
    """From now on what lacks is made by `make`. (`lynx_exp.prepare.on_demand` is it: it knows how cells run, and they
    do not know it.)"""
    global _make
    _make = make


def make_what_lacks(configs: Sequence[Config], console: Console) -> None:
    """Measure what the configs with `first=[calibrate]` lack, each thing once. ValueError, in one line, for a policy or
    model that is wrong."""
    if _make is None:
        return
    made = set()
    for config in configs:
        if "calibrate" not in config.first or config.plan or config.is_untouched:
            continue
        for of_policy in _lacking(config):
            node: Any = {**config.policy, "batch_size": config.batch_size} if of_policy else None
            if (key := digest([asdict(config.model), node])) in made:
                continue
            made.add(key)
            what = f"{config.policy_label}, batches of {config.batch_size}" if of_policy else "the model"
            console.print(f"calibrating: {what}", markup=False, highlight=False, soft_wrap=True)
            for file in _make(config, of_policy):
                console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)


def _lacking(config: Config) -> Iterator[bool]:
    """False: facts of the model, which its policy needs and are nowhere; then True: what is measured for the policy."""
    from lynx_exp.models import find_calibration
    from lynx_exp.routing import Calibrated, build_policy
    from lynx_exp.routing.calibration import AUTO, NotMeasured, for_batches
    from lynx_exp.routing.protected import asks_calibration

    model = known_facts(config.model, plan=False)
    policy: Policy | None = build_policy(config.policy_name, **config.policy_params)
    config, policy = in_one_form(config, policy, model.top_k)
    assert policy is not None
    parts = getattr(policy, "policies", (policy,))
    facts = asks_calibration(policy) or any(isinstance(part, Calibrated) and part.calibration == AUTO for part in parts)
    if facts and config.model.kind != "random" and find_calibration(config.model.id) is None:
        yield False
    policy = for_batches(policy, config.batch_size)
    if config.match_active is not None and is_aligned(policy):
        return  # refused when cells are checked
    try:
        taken = measured_for(policy, model.digest)
    except NotMeasured:
        yield True
    else:
        if taken and not any(held.provenance.get("model_digest") == model.digest for _, held in taken):
            yield True
