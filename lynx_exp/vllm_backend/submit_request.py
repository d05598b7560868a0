"""Submits one request to vLLM, with the settings that the plugin needs to apply its policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_exp.engine import Request

if TYPE_CHECKING:
    from lynx_exp.vllm_backend.host import VllmHost

_numbers = iter(range(2**62))
"""Make request ids unique, since a lane that runs again submits the same requests."""


def submit(
    engine: VllmHost, request: Request, where: dict[str, object], *, scored: bool, salt: str | None = None
) -> str:
    """Submit a request to vLLM.

    Args:
        engine: The vLLM engine.
        request: Prompt and limits.
        where: The plugin's settings of the request: policy, lane and slot.
        scored: Whether to force the request's continuation and return its log-probabilities.
        salt: Requests share cached prompts only with the same salt; None: with all that have none.

    Returns:
        vLLM's id of the request.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    extra: dict[str, object] = {"lynx": where}
    if scored:
        extra["lynx_forced"] = list(request.continuation_ids)
    sampling = request.sampling
    drawn: dict[str, object] = {"temperature": 0.0}
    if sampling is not None and not scored:
        drawn = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "seed": sampling.seed & (2**63 - 1),
        }
    params = SamplingParams(
        **drawn,
        max_tokens=len(request.continuation_ids) if scored else request.max_new_tokens,
        logprobs=0 if scored else None,
        ignore_eos=True,  # `Row` ends a response, as in the transformers backend
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra,
    )
    prompt: dict[str, object] = {"prompt_token_ids": list(request.prompt_ids)}
    if salt is not None:
        prompt["cache_salt"] = salt
    name = f"{where['lane']}-{where['slot']}-{next(_numbers)}"
    engine.llm.llm_engine.add_request(name, prompt, params)
    return name
