"""policies.md: what each policy does, its parameters, its sources."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import fields
from importlib import import_module

from docs.generate.markdown import code, table
from lynx_exp.config import policy_parameters
from lynx_exp.routing import Calibrated, Policy, build_policy, policy_names

_ARXIV = re.compile(r"arXiv\s+(\d{4}\.\d{5}(?:v\d)?)")


def page(leave_out: Collection[str] = ()) -> str:
    policies = {name: build_policy(name) for name in policy_names() if name not in leave_out}
    rows = [(f"[{name}](#{name})", _kind(policy), _sources(policy)) for name, policy in policies.items()]
    return (
        "# Policies\n\n`policy=NAME`, and `policy.PARAMETER=VALUE` for each of its parameters; K is the model's top-k, "
        "E its number of experts. A list gives a parameter one value for each layer. `policy.match_active=N` sets a "
        "policy's knob so that about N experts stay active (below 1: that share of vanilla's).\n\n"
        "Batch-aware policies look at all rows of a lane in a step; the others at one token at a time. `noise_floor` "
        "is vanilla on another batch plan.\n\n"
        + table(("policy", "kind", "source"), rows)
        + "".join(_section(name, policy) for name, policy in policies.items())
    )


def _section(name: str, policy: Policy) -> str:
    module = import_module(type(policy).__module__)
    about = inspect.cleandoc(str(module.__doc__)).removeprefix(f"{name}: ")
    declared = policy_parameters(name)
    rows = [
        (
            code(f.name),
            code(str(getattr(policy, f.name)).replace("None", "null")),
            declared[f.name].allowed,
            _text(name, f.name),
        )
        for f in fields(policy)
        if f.init
    ]
    knob = "" if policy.knob is None else f"\n`match_active` turns `{policy.knob.parameter}`.\n"
    return (
        f"\n## {name}\n\n{about[:1].upper()}{about[1:]}\n\n"
        + table(("parameter", "default", "allowed", "meaning"), rows)
        + knob
    )


def _text(name: str, parameter: str) -> str:
    return policy_parameters(name)[parameter].docstring.replace("None", "null")


_PURPOSES = {"chance": "by chance", "probe": "a probe"}
"""Of policies that nobody would serve with."""


def _kind(policy: Policy) -> str:
    kind = "control" if policy.purpose in ("baseline", "control") else policy.kind
    if policy.purpose in _PURPOSES:
        kind += f", {_PURPOSES[policy.purpose]}"
    return f"{kind}, needs a calibration" if isinstance(policy, Calibrated) else kind


def _sources(policy: Policy) -> str:
    text = str(import_module(type(policy).__module__).__doc__)
    papers = dict.fromkeys(_ARXIV.findall(text))
    return ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in papers)
