"""Whether a row's logits have the same bits wherever it stands in a step of a fixed number of rows, whoever stands
beside it, and over one width of attention or the next: tried, since it is up to the kernels of the device, at the two
narrowest widths that streams have. Where it holds there, tokens do not depend on how lanes are packed, as far as is
known: at thousands of columns attention may take another kernel.

S rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.captured_stream import LEAST_WIDTH
from lynx_exp.engine.decoding.prompts import prefill
from lynx_exp.engine.decoding.stream import MakeDecoder
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.slots import Prefilled, Slots
from lynx_exp.models import Attachment, Router, Rows

_LENGTHS = (5, 40, 17, 33)
"""Of the prompts."""
_WIDTHS = (LEAST_WIDTH, LEAST_WIDTH * 3 // 2)


@torch.inference_mode()
def is_exact(model: PreTrainedModel, routers: Sequence[Router], make_decoder: MakeDecoder, rows: int) -> bool:
    """Four texts in every seat of several steps: all alive; moved, among dead rows; over more columns."""
    vocabulary = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(vocabulary, (n,), generator=draw).tolist()) for n in _LENGTHS]
    made, count = prefill(model, prompts), len(prompts)
    slots = Slots(made, rows, max(_WIDTHS))
    in_turn = [seat % count for seat in range(rows)]
    moved = [(seat * 3 + seat // 5 + 1) % count for seat in range(rows)]
    trials = [(in_turn, 1, _WIDTHS[0]), (moved, 3, _WIDTHS[0]), (in_turn, 2, _WIDTHS[1])]
    first: dict[int, Tensor] = {}
    for texts, every, width in trials:
        alive = [seat for seat in range(rows) if seat % every == 0]
        logits_SV = _step(model, routers, make_decoder, slots, made, texts, alive, width)
        for seat in alive:
            if not torch.equal(first.setdefault(texts[seat], logits_SV[seat].clone()), logits_SV[seat]):
                return False
    return True


def _step(
    model: PreTrainedModel,
    routers: Sequence[Router],
    make_decoder: MakeDecoder,
    slots: Slots,
    made: Prefilled,
    texts: Sequence[int],
    alive: Sequence[int],
    width: int,
) -> Tensor:
    """`[S, V]` logits after a token behind each text."""
    rows, device = len(texts), model.get_input_embeddings().weight.device
    slots.load(list(range(rows)), made, list(texts))
    live_S = torch.zeros(rows, dtype=torch.bool)
    live_S[list(alive)] = True
    live_S = live_S.to(device)
    position_S = torch.tensor([made.lengths[text] for text in texts], device=device) * live_S
    token_S = torch.tensor([3 + text for text in texts], device=device)
    none_S = torch.zeros(rows, dtype=torch.long, device=device)
    attachment = Attachment(routers, None)
    attachment.idle_dead = True
    attachment.rows = Rows(
        decode=torch.ones_like(live_S),
        lane=none_S,
        live=live_S,
        num_lanes=1,
        key=none_S[:1],
        row=none_S,
        phase="decode",
    )
    cursor = Cursor(torch.arange(rows, device=device), position_S, width)
    with attachment:
        return make_decoder(model, slots, cursor).step(token_S)
