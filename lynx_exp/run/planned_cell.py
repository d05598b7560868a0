"""From configs to cells: everything that can be wrong is found here, for all cells, before a model is loaded."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from omegaconf import OmegaConf

from lynx_exp.config import Config
from lynx_exp.run.model_facts import ModelFacts
from lynx_exp.store.identity import SCHEMA, USUAL, Ids
from lynx_exp.store.provenance import scrub

if TYPE_CHECKING:
    from lynx_exp.routing import Policy
    from lynx_exp.store.file_types import CellInfo
    from lynx_exp.tasks import EvalTask
    from lynx_exp.tasks.mix import MixedTask

Task: TypeAlias = "EvalTask | MixedTask"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One checked point of a sweep."""

    config: Config
    policy: Policy | None
    """None for vanilla: nothing is attached."""
    model: ModelFacts
    tasks: tuple[Task, ...]
    ids: Ids
    dtype: str
    device: str
    note: str | None = None
    """What its record says of how it is run, though nobody asked for it."""
    lacks: str | None = None
    """In a plan: what must be measured before it can be run."""

    @property
    def cell_id(self) -> str:
        return self.ids.cell

    @property
    def pair_id(self) -> str:
        return self.ids.pair

    @property
    def name(self) -> str:
        """For people: task, policy, where it acts unless in decode, batch size, batch plan."""
        acts = "" if self.policy is None or self.config.phases == "decode" else f" [{self.config.phases}]"
        plan = "" if self.config.plan_seed is None else f" plan {self.config.plan_seed}"
        return f"{self._asked} {self.config.policy_label}{acts} batch {self.config.batch_size}{plan}"

    @property
    def _asked(self) -> str:
        task = self.config.task
        return f"{task.name} separate" if task.weights is not None and task.mixing == "separate" else task.name

    @cached_property
    def study(self) -> Path:
        return Path(self.config.results).expanduser() / self.config.study_name

    @cached_property
    def folder(self) -> Path:
        """Stable: the same cell is always in the same folder."""
        parts = (
            Path(scrub(self.config.model.id)).name,
            self._asked,
            self.config.policy_label,
            f"b{self.config.batch_size}",
        )
        slug = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part).strip("_") for part in parts)
        return self.study / f"{slug[:100]}-{self.cell_id[:10]}"

    def info(self) -> CellInfo:
        """cell.json"""
        config = self.config
        return {
            "schema": SCHEMA,
            "cell_id": self.cell_id,
            "pair_id": self.pair_id,
            "sizes_id": self.ids.sizes,
            "study": config.study_name,
            "model": self.model.name,
            "num_experts": self.model.num_experts,
            "top_k": self.model.top_k,
            "num_layers": self.model.num_layers,
            "policy": config.policy_name,
            "policy_params": self._shown_params(),
            "match_active": config.match_active,
            "layers": None if self.policy is None else config.layers,
            "policy_label": config.policy_label,
            "phases": "none" if self.policy is None else config.phases,
            "task": config.task.name,
            "mixing": None if config.task.weights is None else config.task.mixing,
            "batch_size": config.batch_size,
            "batching": config.batching,
            "waves": config.waves,
            "tail": config.tail,
            "choices": config.choices,
            "plan_seed": config.seed if config.plan_seed is None else config.plan_seed,
            "scoring": config.scoring,
            "limit": config.limit,
            "seed": config.seed,
            "backend": config.backend,
            "dtype": self.dtype,
            "device": self.device,
        }

    def _shown_params(self) -> dict[str, object]:
        """Parameters that were given a value; for `match_active` without the one that it sets."""
        if self.policy is None:
            return {}
        config, knob = self.config, self.policy.knob
        turned = knob.parameter if knob is not None and config.match_active is not None else None
        params = config.policy_params | {"match_active": config.match_active}
        return {
            key: value
            for key, value in params.items()
            if value is not None and key != turned and (key, value) not in USUAL
        }

    def config_yaml(self) -> str:
        return scrub(OmegaConf.to_yaml(OmegaConf.create(asdict(self.config))))
