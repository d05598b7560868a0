"""Refilled lanes with fillers against a loop that shares nothing with the engine: the model's plain forward pass over
whole texts, without a cache, one step of one lane at a time, its experts chosen by policies written in NumPy.

R live rows, N positions of the longest text, E experts, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.models.tiny import tiny_model
from tests.routing.test_references import into, lynx, ranking, softmax, top_mass

Keep = Callable[[np.ndarray, int], set[int]]
"""Logits `[R, E]` of a lane's rows, K -> the experts that all of them may run."""
LENGTHS = (3, 20, 7, 34, 1, 18, 40, 4, 13, 25, 3, 8, 11, 2, 17, 6)
OWN = 9
"""Requests that are scored; the others fill lanes."""


def most_votes(rows: np.ndarray, k: int, keep: int) -> set[int]:
    """The experts that most rows chose; of equals those with the larger sum of probabilities."""
    votes = np.zeros(rows.shape[1])
    for row in rows:
        votes[ranking(row)[:k]] += 1
    return set(ranking(votes, sum(softmax(row) for row in rows).round(9))[:keep])


POLICIES: dict[str, tuple[Any, Keep | None]] = {
    "vanilla": (None, None),
    "lynx": (
        build_policy("lynx", alpha=1.0, beta=2),
        lambda rows, k: lynx(rows, k, alpha=1.0, beta=2, bins="ceil")[0],
    ),
    "lynx_v1_latency": (
        build_policy("lynx_v1_latency", keep_experts=3),
        lambda rows, k: most_votes(rows, k, 3),
    ),
}


@dataclass(eq=False)
class Text:
    """A request on its way."""

    number: int
    request: Request
    filler: bool
    tokens: list[int] = field(default_factory=list)
    ran: list[list[dict[int, float]]] = field(default_factory=list)
    """Of each token that was fed, each layer: weights by expert."""

    @property
    def over(self) -> bool:
        return len(self.tokens) == self.request.max_new_tokens


@dataclass(eq=False)
class Loop:
    """One lane."""

    engine: Engine
    keep: Keep | None
    renormalizes: bool

    @torch.inference_mode()
    def feed(self, texts: Sequence[Text]) -> list[list[dict[int, float]]]:
        """The next token of each, from a pass over all that it has; what each layer ran for its last one."""
        whole = [[*text.request.prompt_ids, *text.tokens] for text in texts]
        width = max(map(len, whole))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in whole])
        now: list[list[dict[int, float]]] = [[] for _ in texts]

        def choose(layer: int, out: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            logits, weights, experts = out
            weights, experts = weights.clone(), experts.clone()
            k = experts.shape[-1]
            last = [row * width + len(text) - 1 for row, text in enumerate(whole)]
            rows = logits[last].float().numpy()
            kept = self.keep(rows, k) if self.keep is not None and len(texts) > 1 else set(range(rows.shape[1]))
            for at, text in enumerate(texts):
                if not text.tokens:
                    continue  # its prompt goes through, which no policy changes here
                mass = None if self.renormalizes else top_mass(rows[at], k)
                now[at].append(into(rows[at], kept, k, mass))
                fed = [ran[layer] for ran in text.ran] + [now[at][layer]]
                for position, ran in enumerate(fed, at * width + len(text.request.prompt_ids)):
                    experts[position] = torch.tensor(list(ran))
                    weights[position] = torch.tensor(list(ran.values()), dtype=weights.dtype)
            return logits, weights, experts

        hooks = [
            router.module.register_forward_hook(lambda _module, _given, out, layer=layer: choose(layer, out))
            for layer, router in enumerate(self.engine.routers)
        ]
        try:
            logits = self.engine.model(input_ids=ids, use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()
        for row, text in enumerate(texts):
            text.tokens.append(int(logits[row, len(whole[row]) - 1].argmax()))
        return now

    def run(self, requests: Sequence[Request], plan: BatchPlan, lane: int) -> dict[str, Any]:
        """What a `LaneResult` says of the lane."""
        own = [Text(number, requests[number], False) for number in plan.lanes[lane]]
        extra = [Text(number, requests[number], True) for number in plan.fillers_of(lane)]
        waiting, seen, seats = [*own], list[Text](), dict[int, Text | None]()
        seats = dict.fromkeys(range(min(plan.slots or len(own), len(own) + len(extra))))
        slots, steps = dict[Text, int](), list[tuple[int, int, list[int]]]()
        while True:
            while True:  # those who come in, until every seat is taken by one who stays
                if not waiting and any(text and not text.filler for text in seats.values()):
                    waiting, extra = extra, []
                free = [slot for slot, text in seats.items() if text is None][: len(waiting)]
                if not free or (waiting[0].filler and not any(t and not t.filler for t in seats.values())):
                    break
                for slot in free:
                    text = waiting.pop(0)
                    self.feed([text])
                    slots[text] = slot
                    seen.append(text)
                    seats[slot] = None if text.over else text
            live = [text for text in seats.values() if text is not None]
            scored = sum(not text.filler for text in live)
            if not scored:
                break
            ran = self.feed(live)
            for text, layers in zip(live, ran, strict=True):
                text.ran.append(layers)
            active = [len(set().union(*(layers[at] for layers in ran))) for at in range(len(self.engine.routers))]
            steps.append((len(live), scored, active))
            seats = {slot: None if text is None or text.over else text for slot, text in seats.items()}
        return {
            "requests": tuple(text.number for text in seen),
            "fillers": sum(text.filler for text in seen),
            "slots": tuple(slots[text] for text in seen),
            "token_ids": [text.tokens for text in seen],
            "finish_reasons": ["length" if text.over else "cut" for text in seen],
            "live_rows": [live for live, _, _ in steps],
            "scored_rows": [scored for _, scored, _ in steps],
            "active_experts": [active for _, _, active in steps],
        }


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "qwen3_next"])
def family(request: pytest.FixtureRequest, engine: Engine) -> Engine:
    """Routers that renormalise, and one that does not; windows of 8, and layers that keep states."""
    return engine if request.param == "mixtral" else Engine(tiny_model(request.param))


@pytest.mark.parametrize("policy", POLICIES)
def test_refilled_lanes_with_fillers(family: Engine, policy: str) -> None:
    rng = Random(4)
    requests = [
        Request(
            prompt_ids=tuple(rng.randrange(3, 120) for _ in range(length)),
            max_new_tokens=1 + number * 5 % 8,
            ignore_eos=True,
        )
        for number, length in enumerate(LENGTHS)
    ]
    plan = BatchPlan.continuous(OWN, 4, 2, waves=2).filled(range(OWN, len(LENGTHS)), range(len(LENGTHS)), 1)
    ours, keep = POLICIES[policy]
    loop = Loop(family, keep, family.routers[0].rule.renormalize)
    lanes = list(family.run_lanes([replace(request) for request in requests], plan, ours))
    assert len(lanes) == 2 and any("cut" in lane.finish_reasons for lane in lanes)
    for lane in lanes:
        for name, expected in loop.run(requests, plan, lane.lane).items():
            assert getattr(lane, name) == expected, name
        assert set(lane.live_rows) == {4}, "full until the last of its own has ended"
