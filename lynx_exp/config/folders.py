"""Where the YAML files are."""

from __future__ import annotations

from pathlib import Path


def config_folder(name: str = "conf") -> Path:
    """`conf` or `sweeps`: at the top of a checkout, inside the package of an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    return checkout / name if (checkout / "pyproject.toml").exists() else package / name
