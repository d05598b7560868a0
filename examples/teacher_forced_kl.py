"""How far policies move the next-token distributions, on vanilla's own responses: KL divergence, teacher-forced.

One prefill-shaped pass stands for all decode steps: the tokens of step t of a lane's rows are the batch that a policy
sees. `match_active` first brings all policies to the same number of active experts.
"""

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.tasks.mini import held_out

BATCH, ACTIVE = 8, 3.5

engine = Engine.from_pretrained("lynx_tiny", device="cpu")
prompts = [item.prompt for item in held_out("mini_gsm8k")[:32]]
run = engine.generate(prompts, batch_size=BATCH, max_new_tokens=48, stop=("\n\n",))
requests = [
    Request(prompt_ids=engine.encode(prompt), continuation_ids=tuple(tokens))
    for prompt, tokens in zip(prompts, run.token_ids, strict=True)
]
plan = BatchPlan.in_order(len(requests), BATCH)  # who shares a lane

for name in ("random_keep", "lynx_v1_latency", "xshare", "coverage"):
    matched = engine.match_active(build_policy(name), ACTIVE, requests, plan)
    responses = list(engine.fidelity(requests, plan, matched.policy))
    tokens = sum(response.tokens for response in responses)
    kl = sum(response.kl for response in responses) / tokens
    agreeing = sum(response.agreeing for response in responses) / tokens
    print(f"{matched.policy.label}: {1000 * kl:.3g} mnat per token, same best token in {100 * agreeing:.1f} %")
