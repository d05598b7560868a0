"""Everything a user types to `lynx-exp`, typed and checked. Importing it imports neither torch, Hydra nor OmegaConf.

Hydra composes YAML into the schema below; `to_config` turns the result into plain objects, whose checks name the field,
its value and what is allowed. The policy node is open: each policy has its own parameters, checked in
`lynx_exp.routing`.
"""

from __future__ import annotations

from lynx_exp.config.allowed import allowed
from lynx_exp.config.cell import Config, to_config
from lynx_exp.config.checkpoint_node import CheckpointConfig
from lynx_exp.config.choices import (
    BATCHINGS,
    CHOICES,
    DTYPES,
    MIXINGS,
    MOST_PLAN_SEEDS,
    PHASES,
    SANDBOXES,
    SCORINGS,
    TAILS,
    TRUNCATES,
    at_least,
    one_of,
)
from lynx_exp.config.docstrings import Field, dataclass_fields, policy_parameters, policy_summary
from lynx_exp.config.folders import config_folder
from lynx_exp.config.hardware import HardwareConfig
from lynx_exp.config.nodes import (
    GenerationConfig,
    MeasureConfig,
    ModelConfig,
    PackConfig,
    TaskConfig,
    TrackerConfig,
    VllmConfig,
)
from lynx_exp.config.policy_declarations import (
    NOISE_FLOOR,
    UNTOUCHED,
    VANILLA,
    PolicyDeclaration,
    policy_declaration,
)
from lynx_exp.config.policy_labels import default_parameters, label_policy
from lynx_exp.config.roles import HASHED, Role, Use, own_uses, uses
from lynx_exp.config.shared_nodes import AsDict, PerNode
from lynx_exp.config.strict import refuse_unknown
from lynx_exp.wording import did_you_mean

__all__ = [
    "AsDict",
    "BATCHINGS",
    "CHOICES",
    "CheckpointConfig",
    "Config",
    "DTYPES",
    "Field",
    "GenerationConfig",
    "HASHED",
    "HardwareConfig",
    "MIXINGS",
    "MOST_PLAN_SEEDS",
    "MeasureConfig",
    "ModelConfig",
    "NOISE_FLOOR",
    "PHASES",
    "PackConfig",
    "PerNode",
    "PolicyDeclaration",
    "Role",
    "SANDBOXES",
    "SCORINGS",
    "TAILS",
    "TRUNCATES",
    "TaskConfig",
    "TrackerConfig",
    "UNTOUCHED",
    "Use",
    "VANILLA",
    "VllmConfig",
    "allowed",
    "at_least",
    "config_folder",
    "dataclass_fields",
    "default_parameters",
    "did_you_mean",
    "label_policy",
    "one_of",
    "own_uses",
    "policy_declaration",
    "policy_parameters",
    "policy_summary",
    "refuse_unknown",
    "to_config",
    "uses",
]
