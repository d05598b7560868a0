"""A logits processor of vLLM that makes a request say given tokens: teacher-forced decode, step by step.

Imported by vLLM alone. The raw log-probabilities that vLLM hands out are those before any processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import RequestLogitsProcessor

NAME = "lynx_forced"
"""Of the tokens in `SamplingParams.extra_args`."""


class Forced(AdapterLogitsProcessor):
    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        tokens = (params.extra_args or {}).get(NAME)
        if not tokens:
            return None

        def force(output_ids: list[int], logits_V: Tensor) -> Tensor:
            logits_V[tokens[len(output_ids)]] = torch.finfo(logits_V.dtype).max
            return logits_V

        return force
