"""Which experts modules, types and devices the kernels of `few_rows` serve; a refusal is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lynx_exp.models.expert_kernels.gates import Form, form_of
from lynx_exp.models.module_types import Experts

FEW_ROWS = "few_rows"
_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_LEAST_CAPABILITY = (8, 0)
_REASON_LENGTH = 200


class Served(NamedTuple):
    """What is known of a module once it has been looked at."""

    form: Form
    first: str
    """Name of the first product's weights."""
    biased: bool
    transposed: bool

    def parameters(self, experts: Experts) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """(up, its bias, down, its bias)."""
        up, down = getattr(experts, self.first), experts.down_proj
        if not self.biased:
            return up, None, down, None
        return up, getattr(experts, f"{self.first}_bias"), down, experts.down_proj_bias


def served(experts: Experts) -> Served:
    """ValueError, with the reason, if the kernels do not serve this module."""
    why = device_refusal(experts.down_proj.device) or _type_refusal(experts)
    form = None if why else form_of(experts)
    if form is None:
        raise ValueError(f"experts_implementation={FEW_ROWS}: {why or _unknown_form(experts)}")
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    return Served(form, first, bool(experts.has_bias), bool(experts.is_transposed))


def device_refusal(device: torch.device) -> str | None:
    """Why the kernels cannot run there; None: they can, for all that is known before they are compiled."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device)
        if has < _LEAST_CAPABILITY:
            return f"{torch.cuda.get_device_name(device)} has compute capability {has[0]}.{has[1]}, 8.0 is the least"
        return None
    from lynx_exp.models.expert_kernels.launch_experts import INTERPRETED

    return None if INTERPRETED and device.type == "cpu" else f"its kernels need a CUDA device, this is {device}"


def _type_refusal(experts: Experts) -> str | None:
    weights = dict(experts.named_parameters(recurse=False)) | dict(experts.named_buffers(recurse=False))
    kinds = {weight.dtype for name, weight in weights.items() if "proj" in name}
    if len(kinds) != 1 or not kinds <= set(_TYPES):
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return f"weights in {named or 'a form of their own'}; it takes one of bfloat16, float16, float32"
    if any(type(weight) not in (Tensor, nn.Parameter) for weight in weights.values()):
        return "weights that are spread or packed (not plain tensors)"
    if getattr(experts, "has_post_expert_norm", False):
        return f"{type(experts).__name__} has a norm after its experts"
    return None


def _unknown_form(experts: Experts) -> str:
    return f"what {type(experts).__name__} does between its two products is none of the forms that the kernels know"


def expert_modules(model: nn.Module) -> Iterator[Experts]:
    """Those whose way of computing transformers lets one choose."""
    for module in model.modules():
        if hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "down_proj"):
            yield cast(Experts, module)


def refusal(model: nn.Module, rows: int, top_k: int) -> str | None:
    """Why `few_rows` cannot compute this model's experts; None: it can. The kernels are compiled and run for a step of
    `rows` rows on the way, on made-up hidden states, once for each shape of experts."""
    tried: set[tuple[Served, torch.Size, torch.Size, torch.dtype, torch.device]] = set()
    for experts in expert_modules(model):
        try:
            found = served(experts)
            up, _, down, _ = found.parameters(experts)
            key = (found, up.shape, down.shape, up.dtype, up.device)
            if key not in tried:
                _try(experts, found, rows, top_k)
                tried.add(key)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways
            text = " ".join(str(error).split()).removeprefix(f"experts_implementation={FEW_ROWS}: ")
            kind = "" if isinstance(error, ValueError) else f"its kernels do not run here: {type(error).__name__}: "
            return (kind + text)[:_REASON_LENGTH]
    return None if tried else "the model has no experts that transformers lets one choose a way for"


def require(model: nn.Module, rows: int, top_k: int) -> None:
    """ValueError, with the reason, where `refusal` has one."""
    why = refusal(model, rows, top_k)
    if why is not None:
        raise ValueError(f"experts_implementation={FEW_ROWS}: {why}")


def _try(experts: Experts, found: Served, rows: int, top_k: int) -> None:
    from lynx_exp.models.expert_kernels.launch_experts import run_experts

    up, _, down, _ = parameters = found.parameters(experts)
    hidden = down.new_zeros(rows, down.shape[2 if found.transposed else 1])
    ids = torch.arange(rows * top_k, device=down.device).view(rows, top_k) % up.shape[0]
    with torch.no_grad():
        run_experts(hidden, ids, torch.full_like(ids, 0.5, dtype=down.dtype), *parameters, found.form, found.transposed)
    if down.is_cuda:
        torch.cuda.synchronize(down.device)
