"""What `lynx-exp --help` prints: examples, groups, and every field with its value, what it means and may be."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lynx_exp.config import Config, Field, allowed, config_folder, dataclass_fields, policy_parameters, policy_summary

WIDTH = 100
"""Columns of the page."""
COLUMN = 30
"""Where meanings begin."""

HEAD = """\
lynx-exp: run a Mixture-of-Experts model under an expert-selection policy, at a serving batch size,
on a task; get accuracy, decode latency and active experts of the same run.

Examples
  lynx-exp                                              one cell: the bundled model, vanilla
  lynx-exp policy=lynx policy.alpha=0.7 policy.beta=1   another policy, with parameters
  lynx-exp policy=lynx --help                           ... and what its parameters mean
  lynx-exp -m policy=vanilla,lynx batch_size=1,4,16     a grid: every combination, in packs
  lynx-exp -m policy=lynx,oea batching=static           lanes that drain instead of refilled slots
  lynx-exp +study=demo                                  a study of sweeps/: all of it in minutes
  lynx-exp +study=demo +cluster=slurm                   packs as jobs of Slurm (or +cluster=ray)
  lynx-exp -m policy=oea,coverage policy.match_active=5 fidelity=true
                                                        both with 5 active experts; KL from vanilla
  lynx-exp -m +study=matched_active plan=true           what it would run, how long; runs nothing
  lynx-exp +study=demo +control=noise_floor             with vanilla on another batch plan
  lynx-exp model=hub model.id=PATH_OR_HUB_ID task=mini_wmt16 measure.latency=true limit=64
"""

TAIL = """\
Results: results/STUDY_NAME/CELL/, one folder a cell, named by its content. The same command again
skips finished cells and continues the unfinished one. Read them with `lynx-results table results`.

hydra/launcher=packed (default) runs here, cells that differ in policy and batch size side by side;
one_by_one, slurm and ray are the others (hydra.launcher.FIELD=...). All give the same results.

Flags: -m several values a field; --cfg job shows the cell without running it; --hydra-help tells
the rest. Exit codes: 0 all cells done; 1 a cell failed; 2 bad input, nothing was run; 75 terminated
(SIGTERM), queue it again; 130 interrupted."""


def page(overrides: Sequence[str]) -> str:
    """The whole page, for the cell that the arguments so far describe. A Hydra error for a bad one."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
        options = group_options()
        chosen = groups_of_a_cell()
    parts = [
        HEAD,
        "Groups, GROUP=OPTION, and +GROUP=OPTION for one more (+study=NAME is a file of sweeps/)",
        *(_wrapped(_group(group, group in chosen, names)) for group, names in options.items()),
        "",
        "Fields, FIELD=VALUE, as in the cell that the arguments so far describe",
        *_entries(config),
        "",
        TAIL,
    ]
    return "\n".join(parts)


def _group(group: str, is_chosen: bool, options: Sequence[str]) -> str:
    """A group as it is typed, and its options."""
    where = " (of a study)" if group == "scale" else ""
    return f"{'' if is_chosen else '+'}{group}{where}: {', '.join(options)}"


def _entries(config: DictConfig) -> Iterator[str]:
    """A blank line between the nodes of the configuration."""
    last = None
    for field, value in field_values(config):
        node = field.name.partition(".")[0] if "." in field.name or field.name == "policy" else ""
        if last is not None and node != last:
            yield ""
        last = node
        yield entry(f"{field.name}={as_typed(value)}", meaning(field))


def group_options() -> dict[str, list[str]]:
    """Of each group that a user chooses from, its options. Needs Hydra to be initialised."""
    from hydra.core.global_hydra import GlobalHydra

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "initialised"
    groups = sorted(group for group in hydra.list_all_config_groups() if group.partition("/")[0] != "hydra")
    return {group: sorted(hydra.config_loader.get_group_options(group)) for group in groups}


def groups_of_a_cell() -> set[str]:
    """The groups of which every cell has an option: `GROUP=OPTION` changes it, where others need a plus."""
    from hydra import compose

    return set(compose("config", return_hydra_config=True).hydra.runtime.choices)


def field_values(config: DictConfig) -> Iterator[tuple[Field, object]]:
    """Every field below the cell, by its full name, and its value; of the policy node those of its class."""
    yield from _fields_of_node(config, Config, "")


def _fields_of_node(node: DictConfig, kind: type, prefix: str) -> Iterator[tuple[Field, object]]:
    declared = dataclass_fields(kind)
    limits = allowed(kind)
    for each in fields(kind):
        value: Any = "???" if OmegaConf.is_missing(node, each.name) else node[each.name]
        inner = OmegaConf.get_type(value) if isinstance(value, DictConfig) else None
        name = f"{prefix}{each.name}"
        if inner is not None and is_dataclass(inner):
            yield from _fields_of_node(value, inner, f"{name}.")
        elif name == "policy":
            yield from _fields_of_policy(value)
        else:
            yield declared[each.name].named(name, str(limits.get(each.name, ""))), value


def _fields_of_policy(node: DictConfig) -> Iterator[tuple[Field, object]]:
    name = str(node["name"])
    declared = policy_parameters(name)
    yield Field(name="policy", kind="str", docstring=policy_summary(name)), name
    for key, value in node.items():
        if key in declared:
            yield declared[str(key)].named(f"policy.{key}"), value
        elif key == "match_active":
            docstring = " ".join(str(Config.match_active.__doc__).split())
            yield Field(name="policy.match_active", kind="float | None", docstring=docstring), value


def meaning(field: Field) -> str:
    """In a few words, with what is allowed."""
    text = field.meaning.replace("None:", "null:")
    first = text.partition(" ")[0]
    if field.name != "policy" and not (len(first) > 1 and first[:2].isupper()):  # CPU
        text = f"{text[:1].lower()}{text[1:]}"
    return f"{text} ({field.allowed})" if field.allowed else text


def as_typed(value: object) -> str:
    """As a user types it."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if isinstance(plain, str):
        return plain
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def entry(left: str, text: str) -> str:
    """One field: its name and value, and beside it (below it where that is long) what it means."""
    margin = " " * COLUMN
    lines = textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    if len(left) + 4 > COLUMN or not lines:
        return "\n".join([_wrapped(left), *lines])
    return "\n".join([f"  {left}{lines[0][len(left) + 2 :]}", *lines[1:]])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
