"""From the name and parameters that a user types to a policy."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lynx_exp.extensions import modules
from lynx_exp.routing import policies
from lynx_exp.routing.per_layer import PerLayer
from lynx_exp.routing.policy import CALIBRATED, Policy, Protect
from lynx_exp.wording import did_you_mean

LARGEST = 2**32 - 1
"""Of any parameter: seeds go that far, and nothing else needs to."""


@cache
def policy_names() -> tuple[str, ...]:
    """All policies: the modules of `lynx_exp.routing.policies`, of extensions too. ValueError where one of those has
    the name of another."""
    modules("policies", Path(str(policies.__file__)).parent)
    return tuple(sorted(module.name for module in iter_modules(policies.__path__)))


def policy_class(name: str) -> type[Policy]:
    """The class that the module `name` defines.

    Args:
        name: One of `policy_names()`.

    Returns:
        The only subclass of `Policy` that the module defines.

    Raises:
        ValueError: The name is unknown, or the module defines none or several.
    """
    if name not in policy_names():
        hint = did_you_mean(name, policy_names())
        raise ValueError(f"policy={name}: unknown{hint}; known: {', '.join(policy_names())}")
    module = import_module(f"{policies.__name__}.{name}")
    own = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Policy) and c.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise ValueError(f"policy={name}: {module.__file__} defines {len(own)} policies; it must define exactly one")
    return own[0]


def _checked(policy: str, parameter: str, kind: Any, value: object) -> Any:
    where = f"{policy}: {parameter}={value}"
    if NoneType in get_args(kind):
        if value is None:
            return None
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            known = [str(one) for one in get_args(kind)]
            raise ValueError(f"{where}: must be one of {', '.join(known)}{did_you_mean(value, known)}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{where}: must be true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{where}: must be {'a number' if kind is float else f'of type {kind.__name__}'}")
    if isinstance(value, int | float) and abs(value) > LARGEST:
        raise ValueError(f"{where}: must be a number of at most {LARGEST}")
    return kind(value)


def build_policy(name: str, **parameters: object) -> Policy:
    """A policy by its name.

    Args:
        name: One of `policy_names()`.
        **parameters: Fields of its class; a list gives a field one value for each layer.

    Returns:
        The policy, not yet bound to a model.

    Raises:
        ValueError: An unknown name or parameter, or a value of another type or out of range; the message names the
            policy, the parameter, its value and what is allowed.
    """
    cls = policy_class(name)
    kinds = get_type_hints(cls)
    known = [field.name for field in fields(cls) if field.init]
    for parameter in parameters:
        if parameter not in known:
            allowed = f"known: {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name}: {parameter}: unknown parameter; {allowed}")
    by_layer = {p: value for p, value in parameters.items() if isinstance(value, list | tuple)}
    if not by_layer:
        return _of_one_layer(cls, kinds, name, parameters)
    lengths = {len(value) for value in by_layer.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"{name}: {', '.join(by_layer)}: lists of one value a layer must be equally long, and not empty"
        )
    layers = [parameters | {p: value[n] for p, value in by_layer.items()} for n in range(lengths.pop())]
    return PerLayer(policies=tuple(_of_one_layer(cls, kinds, name, each) for each in layers))


def _of_one_layer(cls: type[Policy], kinds: dict[str, Any], name: str, parameters: dict[str, Any]) -> Policy:
    checked = {p: _checked(name, p, kinds[p], value) for p, value in parameters.items() if p != "protect"}
    if "protect" in parameters:
        checked["protect"] = _experts(name, parameters["protect"])
    return cls(**checked)


def _experts(policy: str, value: object) -> Protect:
    """Of one layer."""
    if value is None or value == CALIBRATED:
        return None if value is None else CALIBRATED
    ids = value if isinstance(value, list | tuple) else [None]
    if not all(isinstance(expert, int) and not isinstance(expert, bool) and expert >= 0 for expert in ids):
        raise ValueError(
            f"{policy}: protect={value}: must be calibrated, null, or a list of expert numbers for each layer, such as "
            "[[3],[],[5,7]]"
        )
    return tuple(sorted(set(ids))) or None
