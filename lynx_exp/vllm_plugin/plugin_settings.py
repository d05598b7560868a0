"""What `additional_config={"lynx": {...}}` may say, and what a request may say in `SamplingParams.extra_args`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import get_args

from lynx_exp.routing import PerLayer, Phases, Policy, build_policy
from lynx_exp.routing.calibration import for_batches

WHERE = "additional_config.lynx"
_NOT_OF_THE_POLICY = ("policy", "phases", "layers", "batch_size")


@dataclass(frozen=True, kw_only=True)
class Acting:
    """Who decides, and for which rows."""

    policy: Policy | None
    """None: vanilla, whose experts are only counted."""
    phases: Phases = "decode"
    layers: str | None = None

    @classmethod
    def parse(cls, given: Mapping[str, object], where: str) -> Acting:
        """From a policy's name and parameters side by side, as in `{"policy": "lynx", "alpha": 3, "layers": "1:"}`;
        `batch_size` says in which batches that was measured which it takes (`for_batches`).

        Raises ValueError naming what is wrong.
        """
        name, wanted, layers = given.get("policy"), given.get("phases", "decode"), given.get("layers")
        if not isinstance(name, str):
            raise ValueError(f"{where}.policy={name}: must be the name of a policy")
        phases = next((known for known in get_args(Phases) if known == wanted), None)
        if phases is None:
            raise ValueError(f"{where}.phases={wanted}: must be one of {', '.join(get_args(Phases))}")
        try:
            policy = build_policy(name, **{key: value for key, value in given.items() if key not in _NOT_OF_THE_POLICY})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if any(part.weights == "affine" for part in getattr(policy, "policies", (policy,))):
            raise ValueError(
                f"{where}: {name}: weights=affine: maps what a layer's experts give, which vLLM's kernels do not hand "
                "out; only with backend=transformers"
            )
        batch_size = given.get("batch_size")
        if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool)):
            raise ValueError(f"{where}.batch_size={batch_size}: must be a whole number")
        policy = for_batches(policy, batch_size)
        acts = name != "vanilla" and phases != "none"
        return cls(policy=policy if acts else None, phases=phases, layers=None if layers is None else str(layers))

    @property
    def label(self) -> str:
        return "vanilla" if self.policy is None else self.policy.label


VANILLA = Acting(policy=None)


def spec_of(policy: Policy | None, phases: Phases, layers: str | None) -> dict[str, object]:
    """What `Acting.parse` makes the same of: plain values, as a request carries them."""
    if policy is None:
        return {"policy": "vanilla"}
    parts = policy.policies if isinstance(policy, PerLayer) else (policy,)
    parameters = {
        field.name: [getattr(part, field.name) for part in parts] if len(parts) > 1 else getattr(policy, field.name)
        for field in fields(parts[0])
        if field.init
    }
    spec = {"policy": policy.name, **parameters, "phases": phases, "layers": layers}
    return spec if policy.of_batch_size is None else spec | {"batch_size": policy.of_batch_size}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One engine's."""

    acting: Acting | None = None
    """For all requests, which share one lane. None: requests say who decides for them, and in which lane."""
    count: bool = True
    """Count the distinct experts of each layer before and after the policy."""
    report: str | None = None
    """File that the counts are written to, as JSON, while the engine runs and when it ends."""

    @classmethod
    def parse(cls, given: object) -> Settings:
        """Raises ValueError naming the field, its value and what is allowed."""
        if not isinstance(given, Mapping):
            raise ValueError(f'{WHERE}={given}: must be a mapping such as {{"policy": "lynx", "alpha": 3, "beta": 2}}')
        own = {key: given[key] for key in ("lanes", *_own_fields()) if key in given}
        lanes = own.pop("lanes", False)
        for name, value in (("lanes", lanes), ("count", own.get("count", True))):
            if not isinstance(value, bool):
                raise ValueError(f"{WHERE}.{name}={value}: must be true or false")
        if not isinstance(own.get("report", ""), str | None):
            raise ValueError(f"{WHERE}.report={own['report']}: must be the path of a file")
        rest = {key: value for key, value in given.items() if key not in ("lanes", *_own_fields())}
        if lanes and rest:
            raise ValueError(f"{WHERE}.{next(iter(rest))}: not with lanes=true, where each request brings its policy")
        return cls(acting=None if lanes else Acting.parse(rest, WHERE), **own)

    @property
    def lanes(self) -> bool:
        return self.acting is None


def _own_fields() -> list[str]:
    return [field.name for field in fields(Settings) if field.name != "acting"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a request belongs: the lane whose rows see one another, its slot there, and who decides."""

    lane: int
    slot: int
    acting: Acting
    number: int
    """Of the lane in its plan, from which random policies draw: the same whenever the lane runs."""

    @classmethod
    def of(cls, extra_args: Mapping[str, object] | None, known: dict[str, Acting]) -> Place:
        """From a request's `extra_args={"lynx": {"lane": 3, "slot": 0, "policy": ..., ...}}`. `known`: acts by what
        was given, so that equal ones are one. ValueError without them."""
        given = (extra_args or {}).get("lynx")
        lane = given.get("lane") if isinstance(given, Mapping) else None
        if not isinstance(given, Mapping) or not isinstance(lane, int):
            raise ValueError(
                f'{WHERE}.lanes=true: a request without extra_args={{"lynx": {{"lane": N, "policy": ...}}}}'
            )
        asked = {key: value for key, value in given.items() if key not in ("lane", "slot", "number")}
        key = repr(sorted(asked.items()))
        if key not in known:
            known[key] = Acting.parse(asked, "extra_args.lynx")
        number = int(given.get("number", lane))
        return cls(lane=lane, slot=int(given.get("slot", 0)), acting=known[key], number=number)
