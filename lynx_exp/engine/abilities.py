"""What this engine does with each MoE family of the installed transformers, found by trying it on a tiny model that was
saved and loaded. Run as a command (`python -m lynx_exp.models.families`), it prints what docs/models.md says.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from lynx_exp.engine.engine import Engine
from lynx_exp.engine.requests.plan import BatchPlan, Request
from lynx_exp.models.families import Family, Verdict, examine, families
from lynx_exp.models.routers import Router
from lynx_exp.models.slotless import why_no_slots
from lynx_exp.wording import first_line

_PROMPTS = (tuple(range(3, 17)), (5, 6, 7), (8, 9, 10, 11, 12), (13,))
"""One is longer than a tiny model's windows and chunks."""
_TOKENS = 4


class Abilities(NamedTuple):
    """Each: whether it works, and gives what transformers gives."""

    decode: bool
    """In lanes that drain, as `generate` does."""
    continuous: bool
    """In slots whose rows come and go."""
    measure: bool
    """Steps can be done again, with the same outcome."""
    score: bool
    """Continuations, teacher-forced, as a plain pass over them does."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A family, and what came of it."""

    verdict: Verdict
    abilities: Abilities
    reason: str = ""
    """Why something is missing."""


@torch.inference_mode()
def attempt(verdict: Verdict) -> Attempt:
    """Try everything on the family's tiny model."""
    if not verdict.routers:
        return Attempt(verdict=verdict, abilities=Abilities(False, False, False, False), reason=verdict.reason)
    engine, reasons = Engine(verdict.model), []
    generated = cache(partial(_generated, engine))  # what both plans are held to
    plans = BatchPlan.in_order(len(_PROMPTS), 2), BatchPlan.continuous(len(_PROMPTS), 2, seed=0)

    def works(trial: Callable[[], bool]) -> bool:
        try:
            done = trial()
        except (ValueError, RuntimeError, AttributeError, TypeError, IndexError, KeyError) as error:
            reasons.append(first_line(error))
            return False
        return done

    abilities = Abilities(
        decode=works(lambda: _decodes(engine, plans[0], generated)),
        continuous=works(lambda: engine.has_slots and _decodes(engine, plans[1], generated)),
        measure=works(lambda: engine.has_slots and _repeats(engine)),
        score=works(lambda: _scores(engine, plans[0])),
    )
    known = why_no_slots({"model_type": verdict.model.config.get_text_config().model_type})
    return Attempt(verdict=verdict, abilities=abilities, reason="" if all(abilities) else known or "; ".join(reasons))


def _requests() -> list[Request]:
    return [Request(prompt_ids=prompt, max_new_tokens=_TOKENS, ignore_eos=True) for prompt in _PROMPTS]


def _decodes(engine: Engine, plan: BatchPlan, generated: Callable[[tuple[int, ...]], list[int]]) -> bool:
    found = {
        number: tokens
        for lane in engine.run_lanes(_requests(), plan)
        for number, tokens in zip(lane.requests, lane.token_ids, strict=True)
    }
    return all(found[number] == generated(prompt) for number, prompt in enumerate(_PROMPTS))


def _generated(engine: Engine, prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    given = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": _TOKENS,
        "do_sample": False,
        "eos_token_id": None,
    }
    return engine.model.generate(ids, **given)[0, len(prompt) :].tolist()


def _repeats(engine: Engine) -> bool:
    batch = engine._lane_alone(_PROMPTS, room=2)
    token_R = batch.prefill().argmax(-1)
    once = [batch.step(token_R) for _ in range(2)]
    batch.rewind()
    return all(torch.equal(logits, batch.step(token_R)) for logits in once)


def _scores(engine: Engine, plan: BatchPlan) -> bool:
    continuation = (21, 22, 23)
    asked = [replace(request, continuation_ids=continuation) for request in _requests()]
    for lane in engine.score_lanes(asked, plan):
        for number, found in zip(lane.requests, lane.logprobs or (), strict=True):
            whole = torch.tensor([[*_PROMPTS[number], *continuation]])
            logits = engine.model(input_ids=whole, use_cache=False).logits[0].float().log_softmax(-1)
            first = len(_PROMPTS[number]) - 1
            plain = sum(logits[first + at, token].item() for at, token in enumerate(continuation))
            if abs(plain - found) > 1e-3:
                return False
    return True


def markdown(tried: Iterable[Attempt]) -> str:
    """The tables of docs/models.md: families by what routers do, what can be done with them, and those refused."""
    served: dict[str, list[Family]] = defaultdict(list)
    refused: dict[str, list[Family]] = defaultdict(list)
    able: dict[tuple[Abilities, str], list[Family]] = defaultdict(list)
    for each in tried:
        if each.verdict.routers:
            served[_rule(each.verdict.routers[0])].append(each.verdict.family)
            able[each.abilities, each.reason].append(each.verdict.family)
        else:
            refused[each.reason].append(each.verdict.family)
    passed, failed = (sum(map(len, groups.values())) for groups in (served, refused))
    lines = [
        f"transformers {transformers.__version__} has {passed + failed} MoE families among its causal language "
        f"models: {passed} supported, {failed} refused.",
        "",
        "| its routers choose by | `model_type` |",
        "| --- | --- |",
        *(f"| {rule} | {_names(served[rule])} |" for rule in sorted(served)),
        "",
        "| " + " | ".join(Abilities._fields) + " | `model_type` |",
        "| --- " * (len(Abilities._fields) + 1) + "|",
        *_ability_rows(able),
        "",
        "| refused | why |",
        "| --- | --- |",
    ]
    lines += [f"| {_names(found)} | {reason} |" for reason, found in _by_first(refused)]
    return "\n".join(lines)


def _ability_rows(able: dict[tuple[Abilities, str], list[Family]]) -> Iterator[str]:
    """The most able first."""
    for (abilities, reason), found in sorted(able.items(), key=lambda item: (-sum(item[0][0]), str(item[1][0]))):
        cells = ["yes" if ability else "no" for ability in abilities]
        yield f"| {' | '.join(cells)} | {_names(found)}{f' ({reason})' if reason else ''} |"


def _by_first(groups: dict[str, list[Family]]) -> list[tuple[str, list[Family]]]:
    return sorted(groups.items(), key=lambda item: str(item[1][0]))


def _rule(router: Router) -> str:
    rule = router.rule
    text = {"sqrtsoftplus": "square root of softplus"}.get(rule.score, rule.score)
    if rule.bias is not None:
        text += " + bias" if rule.bias_on == "scores" else "; bias on the logits"
    if rule.grouped:
        text += f", in groups ranked by their {'best score' if rule.group_score == 'max' else 'two best'}"
    return text if rule.expert_scale is None else f"{text}; weights scaled by expert"


def _names(families: Iterable[Family]) -> str:
    return ", ".join("/".join(f"`{name}`" for name in family.model_types) for family in families)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of architectures that miss their fast kernels
    disable_progress_bar()
    print(markdown(map(attempt, map(examine, families()))))
