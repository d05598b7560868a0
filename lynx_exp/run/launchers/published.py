"""What presets publish for policies, as Hydra finds it: `model=mixtral_8x7b policy=lynx` composes, after both, the
option `mixtral_8x7b/lynx` of the group `published`, which is `published.lynx` of conf/model/mixtral_8x7b.yaml.

The group has no files of its own, so that a preset says in one place what holds for its model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from lynx_exp.config import config_folder
from lynx_exp.extensions import extension_file

GROUP = "published"
PATH = "lynx-presets://models"


def published(model: str, policy: str) -> DictConfig | None:
    """The parameters that a preset has for a policy; None if it has none, or there is no such preset."""
    file: Path | None = config_folder() / "model" / f"{model}.yaml"
    if file is None or not file.is_file():
        file = extension_file("conf/model", f"{model}.yaml")
    if file is None:
        return None
    preset = OmegaConf.load(file)
    found = OmegaConf.select(preset, f"published.{policy}") if isinstance(preset, DictConfig) else None
    return found if isinstance(found, DictConfig) else None


class PublishedSource(ConfigSource):
    @staticmethod
    def scheme() -> str:
        return "lynx-presets"

    def load_config(self, config_path: str) -> ConfigResult:
        found = self._find(config_path)
        if found is None:
            raise ConfigLoadError(f"{config_path}: not published")
        header: dict[str, Any] = {"package": None}
        return ConfigResult(provider=self.provider, path=self.full_path(), config=found, header=header)

    def is_config(self, config_path: str) -> bool:
        return self._find(config_path) is not None

    def is_group(self, config_path: str) -> bool:
        return config_path == GROUP  # though `list` leaves it out of what users are offered

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []

    @staticmethod
    def _find(config_path: str) -> DictConfig | None:
        parts = config_path.removesuffix(".yaml").split("/")
        return published(parts[1], parts[2]) if len(parts) == 3 and parts[0] == GROUP else None
