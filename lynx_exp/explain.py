"""Bad input in one line: what Hydra and OmegaConf raise, in the words of someone who types `field=value`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError, YAMLError

from lynx_exp.config import config_folder
from lynx_exp.extensions import added_files
from lynx_exp.wording import did_you_mean, first_line

GROUPS = ("model", "policy", "task", "hardware", "tracker", "hydra/launcher")


def explain(error: Exception, arguments: Sequence[str], config_name: str = "config") -> str | None:
    """One line for bad input to the configuration `config_name`; None for an error that is not the user's."""
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, ConfigCompositionException):
        return _composition(error, arguments, config_name)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error)
    if isinstance(error, YAMLError):
        return _yaml(error)
    if isinstance(error, HydraException | ValueError):
        return first_line(error)
    return None


def _unreadable(error: OverrideParseException) -> str:
    """With quotes around its value, where those would mend it: Hydra reads `( ) [ ] { } , : = \\` as its own."""
    typed = str(error.override)
    key, equals, value = typed.partition("=")
    if not equals or not value or set(value) & set("'\"\\"):
        return f"{typed}: {first_line(error)}"
    return f"{typed}: cannot be read as a value; where it is meant as text, quote it twice: '{key}=\"{value}\"'"


def _yaml(error: YAMLError) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"not YAML: {first_line(error)}"
    mark = error.problem_mark
    return f"{mark.name}: is not YAML: line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    known = sorted(error.options or [])
    if not group:
        return f"{option}: no such configuration"
    plus = "+" if group in {folder.name for folder in config_folder("sweeps").iterdir()} else ""
    return f"{plus}{group}={option}: unknown; known: {', '.join(known)}{did_you_mean(option, known)}"


def _composition(error: ConfigCompositionException, arguments: Sequence[str], config_name: str) -> str:
    text = first_line(error)
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return _omegaconf(cause, error)
    if "Ambiguous value for argument" in text:
        argument = text.partition("'")[2].rpartition("'")[0]
        if argument.startswith("layers="):
            return f"{argument}: several values; layers=[0,4:8] is one cell that acts in all of them"
        return f"{argument}: several values; add -m to run one cell for each"
    matched = re.search(r"Could not (?:override|append to config\.?|delete from config\.?) '([^']+)'", text)
    if not matched:
        return f"{text}: {first_line(cause)}" if cause is not None else text
    key = matched[1].partition("@")[0]
    typed = next((argument for argument in arguments if argument.lstrip("+~").partition("=")[0] == key), key)
    return _unknown_field(key, typed, arguments, config_name)


OF_EVERY_POLICY = {"weights": "renormalize", "k2": "null", "protect": "null", "per_layer": "null"}
"""Parameters of every policy, which a YAML of one's own may have left out."""


def _unknown_field(key: str, typed: str, arguments: Sequence[str], config_name: str) -> str:
    sweeps = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in config_folder("sweeps").iterdir()
    }
    if key in sweeps:
        name = typed.partition("=")[2]
        known_files = ", ".join(sweeps[key])
        return (
            f"{typed}: take a file with +{key}=NAME (known: {known_files}), or name the results with study_name={name}"
        )
    known = _known_fields(key.rpartition(".")[0], arguments, config_name)
    if known is None:
        return f"{typed}: unknown field"
    parent, _, last = key.rpartition(".")
    if not parent and (within := _within(last, arguments, config_name)):
        return f"{typed}: unknown field; did you mean {within}?"
    prefix = f"{parent}." if parent else ""
    shown = ", ".join(f"{prefix}{name}" for name in known) or "none"
    close = did_you_mean(last, known)
    swept = next((argument for argument in arguments if argument.startswith("policy=") and "," in argument), None)
    if parent == "policy" and swept:
        return f"{typed}: not one of the parameters of every policy in {swept}; run them apart, or as cells of a study"
    if parent == "policy" and not known:
        return f"{typed}: this policy has no parameters; choose another with policy=NAME"
    if last in known:
        return f"{typed}: {key} has other keys; add one with +{key}.NAME=VALUE"
    if parent == "policy" and last in OF_EVERY_POLICY:
        return f"{typed}: this policy's YAML has no {last}; give it the line `{last}: {OF_EVERY_POLICY[last]}`"
    if parent and not known and parent != "policy":
        return f"{typed}: {parent} takes names of your own; put a + before it: +{typed.lstrip('+~')}"
    if parent and last in (_known_fields("", arguments, config_name) or ()):
        return f"{typed}: unknown field; did you mean {last}?"
    return f"{typed}: unknown field{close or ';'} known: {shown}"


def _within(name: str, arguments: Sequence[str], config_name: str) -> str | None:
    """Where a field of this name is below another, as in the choices that the arguments make; else the policy that has
    such a parameter."""
    for parent in ("policy", "measure", "task", "task.generation", "model", "pack", "tracker"):
        if name in (_known_fields(parent, arguments, config_name) or ()):
            return f"{parent}.{name}"
    if config_name != "config":
        return None
    files = (*(config_folder() / "policy").glob("*.yaml"), *added_files("conf/policy"))
    having = sorted(file.stem for file in files if re.search(rf"^{re.escape(name)}:", file.read_text(), re.MULTILINE))
    return f"policy.{name}, with policy={having[0]}" if having and name != "name" else None


def _known_fields(parent: str, arguments: Sequence[str], config_name: str) -> list[str] | None:
    """Fields below `parent` in the choices that the arguments make, as far as those compose."""
    choices = [argument for argument in arguments if argument.partition("=")[0] in GROUPS and "," not in argument]
    config = _compose(choices, config_name)
    node = config if config is None or not parent else OmegaConf.select(config, parent, throw_on_missing=False)
    if not isinstance(node, DictConfig):
        return None
    return [str(name) for name in node if name != "hydra" and not (parent == "policy" and name == "name")]


def _compose(choices: list[str], config_name: str) -> DictConfig | None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose(config_name, overrides=choices)
    except (HydraException, OmegaConfBaseException):
        return None


def _omegaconf(error: OmegaConfBaseException, outer: Exception | None = None) -> str:
    text = first_line(error)
    field = error.full_key or "config"
    if "missing mandatory value" in text or "Missing mandatory value" in text:
        hint = ": give a folder or a hub id, as in model=hub model.id=PATH_OR_HUB_ID" if field == "model.id" else ""
        return f"{field} is missing{hint}"
    override = re.search(r"override (\S+=.*)", str(outer)) if outer is not None else None
    typed = override[1] if override else field
    kind = re.search(r"could not be converted to (\w+)", text) or re.search(r"not a valid (\w+)", text)
    if kind:
        plain = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false", "bool": "true or false"}
        return f"{typed}: must be {plain.get(kind[1], 'of type ' + kind[1])}"
    if "is not Optional" in text:
        return f"{typed}: cannot be null; leave it out for its default"
    if "is not a ListConfig, list or tuple" in text:
        name, _, value = typed.partition("=")
        return f"{typed}: must be a list: {name}=[{value}]"
    return f"{typed}: {text}"
