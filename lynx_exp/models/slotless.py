"""Model types whose rows cannot enter and leave a decode batch at any time, known from a configuration alone: a plan
imports neither torch nor transformers. `lynx_exp.engine.slots` judges the loaded model; a test holds that both agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SLIDING = "attends within windows or chunks"
_STATE = "keeps states of linear attention or convolutions"
_INDEXED = "attends to positions that an index of its own chooses"

_REASONS = {
    **dict.fromkeys(
        (
            *("afmoe", "beam", "cohere2_moe", "exaone_moe", "flint", "gemma4", "gemma4_text", "gpt_oss"),
            *("granitemoe_swa", "kolibri1", "llama4", "llama4_text", "mimo_v2_flash"),
        ),
        _SLIDING,
    ),
    **dict.fromkeys(
        (
            *("bailing_hybrid", "granitemoehybrid", "inkling2_text", "jamba", "kimi_linear", "lfm2_moe", "minimax"),
            *("nemotron_h", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"),
        ),
        _STATE,
    ),
    **dict.fromkeys(
        (
            *("axk2", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"),
            *("qwen4_exp", "qwen4_exp_text"),
        ),
        _INDEXED,
    ),
}
"""Model type: what its layers do that slots do not hold."""


def why_no_slots(config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration (config.json) has no slots, in a few words; None: it has, as far as known."""
    return _REASONS.get(str(config.get("model_type")))
