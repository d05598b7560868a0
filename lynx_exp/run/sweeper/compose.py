"""The configs of many jobs, composed by Hydra once or twice rather than once for each job.

A job's overrides fall apart by the field of `Config` that they are about: `policy=lynx policy.alpha=3` make the policy,
`batch_size=4` the batch size. What Hydra makes of one field depends on that field's overrides and on those that belong
to no field (`+study=demo`, and `model=`, whose presets publish parameters for policies), as long as the options that
are chosen hold nothing but their own node (no defaults list, no package, no interpolation), which is looked at. So
fields are taken from the jobs that Hydra has composed, plain values are set in them with OmegaConf's own checks of
type, and a config is put together of its fields. An option that no job has had yet is merged into the field as Hydra
leaves it without any option, if that is nothing but its schema.
Whatever does not fit this, and whatever goes wrong, is composed by Hydra itself, whose errors are then the user's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override

from lynx_exp.config import Config, to_config

FIELDS = frozenset(field.name for field in fields(Config))
_KEY = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")


class NeedsFullCompose(Exception):
    """A job that has to be composed by itself."""


@dataclass(frozen=True)
class _Word:
    """One override, as far as it matters here."""

    text: str
    field: str | None
    """Of `Config`; None: it belongs to none, and may change anything."""
    key: str
    plain: bool = False
    """It sets a number, a truth value, a text or null."""
    value: object = None
    choice: bool = False
    """It chooses an option of a group."""
    option: object = None
    """What that option's file holds, where it stands alone; its name is the value."""

    @property
    def shape(self) -> str:
        """Equal for overrides that differ in a plain value only."""
        return self.key if self.plain else self.text


class Composer:
    """`config(overrides)` is what `to_config(load(overrides))` is, sooner."""

    def __init__(self, load: Callable[[list[str]], DictConfig], loader: ConfigLoader, parser: OverridesParser) -> None:
        """`load` composes one job with Hydra, without the node `hydra`."""
        self._load, self._loader, self._parser = load, loader, parser
        self._groups = frozenset(loader.list_groups(""))
        self._words: dict[str, _Word] = {}
        self._bases: dict[tuple[str, ...], dict[str, object]] = {}
        """By the overrides of no field: the fields that are what those make them."""
        self._sources: dict[tuple[object, ...], DictConfig] = {}
        """By those, a field and the shapes of its overrides: a composed job to take the field from."""
        self._values: dict[tuple[object, ...], object] = {}
        """By those, a field and its overrides: the field."""
        self._bare: dict[tuple[str, ...], DictConfig | None] = {}
        """By those: what Hydra composes without any option; None if it is of no use."""
        self.composed = 0
        """Times that Hydra composed."""

    def config(self, overrides: Sequence[str]) -> Config:
        """ValueError, or an error of Hydra's or OmegaConf's, for bad ones."""
        words = [self._words.get(text) or self._word(text) for text in overrides]
        around = tuple(word.text for word in words if word.field is None)
        by_field: dict[str, list[_Word]] = {}
        for word in words:
            if word.field is not None:
                by_field.setdefault(word.field, []).append(word)
        try:
            return self._assembled(around, by_field)
        except Exception:  # unknown so far, or wrong: Hydra says which
            pass
        composed = self._load(list(overrides))
        self.composed += 1
        config = to_config(composed)
        if all(_apart(words) for words in by_field.values()) and "${" not in OmegaConf.to_yaml(composed):
            self._learn(around, by_field, composed, config)
        return config

    def _assembled(self, around: tuple[str, ...], by_field: dict[str, list[_Word]]) -> Config:
        base = self._bases[around]
        changed: dict[str, Any] = {}
        for name, words in by_field.items():
            exact = (around, name, *(word.text for word in words))
            if exact not in self._values:
                shape = (around, name, *(word.shape for word in words))
                if shape not in self._sources:
                    self._sources[shape] = self._merged(around, name, words)
                self._values[exact] = _taken(self._sources[shape], name, words)
            changed[name] = self._values[exact]
        if len(base) < len(FIELDS) and not base.keys() | changed.keys() >= FIELDS:
            raise NeedsFullCompose
        return Config(**{**base, **changed})

    def _merged(self, around: tuple[str, ...], name: str, words: Sequence[_Word]) -> DictConfig:
        """A config whose field is of the option that `words` choose. Raises Apart if only Hydra can tell."""
        (choice, *others) = sorted(words, key=lambda word: not word.choice)
        if not choice.choice or not all(word.plain for word in others):
            raise NeedsFullCompose
        if around not in self._bare:
            self._bare[around] = self._without_options(around)
        bare = self._bare[around]
        if bare is None or not OmegaConf.is_missing(bare, name):  # something else sets some of the field
            raise NeedsFullCompose
        made = deepcopy(bare)
        published = bare.model.published if name == "policy" else {}
        with flag_override(made, "struct", False):
            made.merge_with({name: choice.option})
            made.merge_with({name: published.get(choice.value, {})})
        return made

    def _without_options(self, around: tuple[str, ...]) -> DictConfig | None:
        self.composed += 1
        absent = sorted(self._groups & FIELDS - {"model"})
        try:
            bare = self._load([*around, *(f"~{group}" for group in absent), "published@policy=of/nobody"])
        except Exception:  # such as an override of a default that is then not there
            return None
        return None if "${" in OmegaConf.to_yaml(bare) else bare

    def _learn(
        self, around: tuple[str, ...], by_field: dict[str, list[_Word]], composed: DictConfig, config: Config
    ) -> None:
        base = self._bases.setdefault(around, {})
        base |= {name: getattr(config, name) for name in FIELDS if name not in by_field}
        for name, words in by_field.items():
            self._sources.setdefault((around, name, *(word.shape for word in words)), composed)
            self._values.setdefault((around, name, *(word.text for word in words)), getattr(config, name))

    def _word(self, text: str) -> _Word:
        self._words[text] = word = self._read(text)
        return word

    def _read(self, text: str) -> _Word:
        key, _, value = text.partition("=")
        name = key.partition(".")[0]
        if _KEY.fullmatch(key) and key not in self._groups and name in FIELDS and _INTEGER.fullmatch(value):
            return _Word(text=text, field=name, key=key, plain=True, value=int(value))
        override = self._parser.parse_override(text)
        key = override.key_or_group
        name = key.partition(".")[0]
        if override.package is not None or not _KEY.fullmatch(key) or name not in FIELDS or "${" in text:
            return _Word(text=text, field=None, key=key)
        if key == "model":  # its preset may say what a policy's parameters are
            return _Word(text=text, field=None, key=key)
        if key in self._groups:
            option = self._alone(key, override) if override.type is OverrideType.CHANGE else None
            field = None if option is None else key
            return _Word(text=text, field=field, key=key, value=override.value(), choice=True, option=option)
        found = None if override.is_sweep_override() else override.value()
        plain = override.type is OverrideType.CHANGE and _is_plain(found) and not override.is_sweep_override()
        return _Word(text=text, field=name, key=key, plain=plain, value=found)

    def _alone(self, group: str, override: Override) -> DictConfig | None:
        """The option that is chosen, if it holds its own node and nothing else."""
        option = override.value()
        if not isinstance(option, str):
            return None
        path = f"{group}/{option}"
        found = [source for source in self._loader.get_sources() if source.is_config(path)]
        if not found:
            return None
        loaded = found[0].load_config(path)
        alone = not loaded.defaults_list and loaded.header.get("package") is None and "${" not in str(loaded.config)
        return loaded.config if alone and isinstance(loaded.config, DictConfig) else None


def _is_plain(value: object) -> bool:
    """What OmegaConf just sets: not what it resolves or takes for missing, nor what `to_config` refuses."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or (isinstance(value, str) and value != "???")


def _apart(words: Sequence[_Word]) -> bool:
    """Whether the plain ones of a field can be set after the others: none is within, or around, what another adds."""
    others = [f"{word.key}." for word in words if not word.plain and not word.choice]
    plain = [f"{word.key}." for word in words if word.plain]
    return not any(a.startswith(b) or b.startswith(a) for a in plain for b in others)


def _taken(source: DictConfig, name: str, words: Sequence[_Word]) -> object:
    """The field of a composed job, with plain values in place of the job's own."""
    for word in words:
        if word.plain:
            OmegaConf.update(source, word.key, word.value, merge=True)
    node = source[name]
    return OmegaConf.to_object(node) if isinstance(node, DictConfig | ListConfig) else node
