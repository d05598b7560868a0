"""Model types whose rows cannot enter and leave a decode batch at any time, known from a configuration alone: a plan
imports neither torch nor transformers. `engine.kv_cache.slots` judges the loaded model; a test holds that both agree.
"""

from __future__ import annotations

from collections.abc import Mapping

_INDEXED = "attends to positions that an index of its own chooses"

_REASONS = {
    **dict.fromkeys(
        (
            *("axk2", "deepseek_v32", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4"),
            *("qwen4_exp", "qwen4_exp_text"),
        ),
        _INDEXED,
    ),
    "deepseek_v4": "compresses past positions in blocks that begin with the padding of a prompt",
    "inkling2_text": "keeps states of convolutions inside its attention layers",
    "minimax": "keeps a cache of its own",
}
"""Model type: what its layers do that slots do not hold."""


UNBATCHED = frozenset({"deepseek_v4"})
"""Model types for which a prompt gives other tokens beside a longer one than alone: not decoded, and not scored."""


def refuse_unbatched(config: Mapping[str, object]) -> None:
    """ValueError for a model that would answer wrongly in a batch."""
    kind = str(config.get("model_type"))
    if kind in UNBATCHED:
        raise ValueError(
            f"model_type={kind}: {_REASONS[kind]}: in a batch of unequal prompts its answers are not those of "
            "transformers; not supported with backend=transformers"
        )


def why_no_slots(config: Mapping[str, object]) -> str | None:
    """Why a model of this configuration (config.json) has no slots, in a few words; None: it has, as far as known."""
    return _REASONS.get(str(config.get("model_type")))
