"""A policy of your own, tried on the bundled model without a file or a line of configuration.

The experts of the largest summed router probability serve the whole lane. docs/extending.md makes it a name that
`lynx-exp policy=NAME` knows.
"""

import sys
from dataclasses import dataclass
from statistics import mean

from torch import Tensor

from lynx_exp import Engine, build_policy
from lynx_exp.routing import LanePolicy, RouterRule, Routing, StepContext, best_mask, lane_sum
from lynx_exp.tasks.mini import held_out


@dataclass(frozen=True, kw_only=True)
class Strongest(LanePolicy):
    count: int = 3
    """Experts that stay: K..E."""

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        mass_GE = lane_sum(routing.mass(rule), step)  # [lanes, experts], over the live rows of each lane
        return best_mask(mass_GE, mass_GE, self.count)


print("loading lynx_tiny; the first run compiles lynx's loops, which takes a while", file=sys.stderr)
engine = Engine.from_pretrained("lynx_tiny", device="cpu")
prompts = [item.prompt for item in held_out("mini_gsm8k")[:16]]
print("vanilla, then two policies, 16 prompts each", file=sys.stderr)
plain = engine.generate(prompts, batch_size=8, max_new_tokens=48, stop=("\n\n",))
for name, policy in {"strongest": Strongest(), "lynx": build_policy("lynx", alpha=1.0, beta=2)}.items():
    run = engine.generate(prompts, batch_size=8, policy=policy, max_new_tokens=48, stop=("\n\n",))
    active = mean(row.active_experts for row in run.active_experts)
    before = mean(row.active_experts for row in plain.active_experts)
    same = sum(a == b for a, b in zip(run.texts, plain.texts, strict=True))
    print(f"{name}: {active:.2f} active experts (vanilla {before:.2f}), {same} of {len(prompts)} responses the same")
