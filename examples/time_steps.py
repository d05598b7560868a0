"""The time of a decode step at several batch sizes, vanilla's and a policy's in turns on the same tokens.

The control `no_drop` runs the code path of a policy and drops nothing: what selection alone costs.
"""

import sys

from lynx_exp import Engine, build_policy
from lynx_exp.tasks.mini import held_out

engine = Engine.from_pretrained("lynx_tiny")
prompts = [item.prompt for item in held_out("mini_gsm8k")]
policies = {"half": build_policy("lynx_v1_latency", keep_experts=8), "no_drop": build_policy("no_drop")}

print("warming up, then timing each batch size in turns: half a minute on two CPU cores", file=sys.stderr)
print("batch    policy  active  ms a step               speed-up")
for batch in (2, 8, 16):
    timing = engine.measure(
        [engine.encode(prompt) for prompt in prompts[:batch]],
        batch_size=batch,
        policies=policies,
        new_tokens=8,
        repeats=5,
    )
    for name in timing.names:
        ms, low, high = timing.step_time_ms(name)
        line = f"{batch:5} {name:>9}  {timing.active_experts[name]:6.2f}  {ms:5.2f} [{low:.2f}, {high:.2f}]"
        if name != "vanilla":
            line += "   {:.2f} [{:.2f}, {:.2f}]".format(*timing.speedup(name))
        print(line, flush=True)
