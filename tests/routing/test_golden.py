"""Policies on one small batch whose outcome was worked out by hand: B=4, E=6, K=2, renormalising softmax router.

The laws (test_laws.py) hold every policy, without being told its name; a trace is for what a paper says in figures.
"""

from __future__ import annotations

import pytest
import torch

from lynx_exp.routing import (
    Calibrated,
    Calibration,
    ModelShape,
    RouterRule,
    Routing,
    StepContext,
    build_policy,
)

LOGITS = torch.tensor(
    [
        [3.0, 2.6, 0.5, 0.2, -1.0, -2.0],
        [2.0, 0.1, 1.9, 0.4, 0.3, -3.0],
        [0.0, 2.5, 0.3, 2.2, -0.5, 1.0],
        [1.2, 0.9, -1.0, 0.0, 1.0, 2.8],
    ]
)
VANILLA_IDS = [[0, 1], [0, 2], [1, 3], [5, 0]]
VANILLA_WEIGHTS = [[0.5987, 0.4013], [0.5250, 0.4750], [0.5744, 0.4256], [0.8320, 0.1680]]
RULE = RouterRule(score="softmax", renormalize=True)
STEP = StepContext(
    layer=0,
    decode=torch.ones(4, dtype=torch.bool),
    lane=torch.zeros(4, dtype=torch.long),
    live=torch.ones(4, dtype=torch.bool),
    num_lanes=1,
    key=torch.tensor([7]),
    row=torch.arange(4) << 32,
)


def vanilla() -> Routing:
    weights, experts = LOGITS.softmax(-1).topk(2)
    return Routing(logits=LOGITS, experts=experts, weights=weights / weights.sum(-1, keepdim=True))


def test_the_fixture_is_what_it_says() -> None:
    routing = vanilla()
    assert routing.experts.tolist() == VANILLA_IDS
    assert routing.weights.tolist() == [pytest.approx(row, abs=1e-4) for row in VANILLA_WEIGHTS]


ONLY_FIRST = [1.0, 0.0]
KEPT_015 = [[0, 1], [0, 1], [1, 5], [5, 0]]
WEIGHTS_015 = {1: [0.8699, 0.1301], 2: [0.8176, 0.1824]}


def alike(rows: dict[int, dict[int, float]]) -> torch.Tensor:
    """`[1, E, E]`: similarities, 0 where not named."""
    matrix = torch.eye(6)
    for e, others in rows.items():
        for v, value in others.items():
            matrix[e, v] = value
    return matrix[None]


FACTS = Calibration(
    fingerprint="",
    similarity={
        "frobenius": alike({2: {0: 0.3, 1: 0.6, 5: 0.5}, 3: {0: 0.2, 1: 0.1, 5: 0.15}}),
        "cosine": alike({}),
        "cka": alike({2: {0: 0.9}, 3: {1: 0.9}}),
    },
    ratio=torch.tensor([[1.0, 0.9]]),
    divergence=torch.tensor([[0.5, 0.0]]),
    saliency=torch.tensor([[0.2, 0.7, 0.1, 0.4, 0.9, 0.4]]),
    provenance={},
)
SHAPE = ModelShape(num_experts=6, top_k=2, num_layers=1)
GOLDEN = {
    # name, parameters: ids, and the weights of the rows that change
    ("vanilla",): (VANILLA_IDS, {}),
    ("no_drop",): (VANILLA_IDS, {}),
    ("lynx", ("alpha", 3.0), ("beta", 2)): (VANILLA_IDS, {}),
    ("lynx", ("alpha", 1.0), ("beta", 1)): (VANILLA_IDS, {}),
    ("lynx", ("alpha", 0.7), ("beta", 1)): (VANILLA_IDS, {}),
    # bins [0 0 -1 -1 -2 -2], [0 0 0 0 0 -2], [-1 0 -1 0 -1 0], [0 0 -1 -1 0 0], affinities summed [3.25, 4, 1.75, 2.5,
    # 2.3125, 2.125]: tokens 0, 1 and 3 vote for 1 and 0, token 2 for 1 and 3
    ("lynx", ("alpha", 0.5), ("beta", None)): (
        [[0, 1], [0, 3], [1, 3], [0, 1]],
        {1: [0.8320, 0.1680], 3: [0.5744, 0.4256]},
    ),
    ("lynx", ("alpha", 1.0), ("bins", "continuous")): (VANILLA_IDS, {}),
    # votes [3, 2, 1, 1, 0, 1]: 5 and 3 win the tie by summed probability .7326, .4894 against .4788
    ("lynx_v1_latency", ("keep_experts", 4)): ([[0, 1], [0, 3], [1, 3], [5, 0]], {1: [0.8320, 0.1680]}),
    ("lynx_v1_latency", ("keep_experts", 2)): (
        [[0, 1], [0, 1], [1, 0], [0, 1]],
        {1: [0.8699, 0.1301], 2: [0.9241, 0.0759], 3: [0.5744, 0.4256]},
    ),
    # only token 3 is confident (.7981), so K = {5} is filled up by votes to {5, 0}
    ("lynx_v1_accuracy", ("confidence", 0.5)): (
        [[0, 5], [0, 5], [5, 0], [5, 0]],
        {0: [0.9933, 0.0067], 1: [0.9933, 0.0067], 2: [0.7311, 0.2689]},
    ),
    ("lynx_v1_accuracy", ("confidence", 0.3), ("min_experts", 3)): (
        [[0, 1], [0, 1], [1, 5], [5, 0]],
        {1: [0.8699, 0.1301], 2: [0.8176, 0.1824]},
    ),
    # below the line from first to last: .0713 at rank 1 and .2832 at rank 2 of token 0; -.0423 and .1639; .0313 and
    # .1798; .3766 and .2773 of token 3, whose knee is rank 1: it runs its first alone
    ("elbow",): ([[0, 1], [0, 2], [1, 3], [5, 5]], {3: ONLY_FIRST}),
    ("elbow", ("extra", 1)): (VANILLA_IDS, {}),
    # summed 1.1163 .9725 .4788 .4894 .2105 .7326: 0 and 1 are kept. Tokens 1 and 2 lose their second, token 3 its first
    ("xshare", ("budget", 2), ("warm_up", 0), ("substitute", False)): (
        [[0, 1], [0, 0], [1, 1], [0, 0]],
        {1: ONLY_FIRST, 2: ONLY_FIRST, 3: ONLY_FIRST},
    ),
    ("top_k", ("k", 2)): (VANILLA_IDS, {}),
    ("top_k", ("k", 1)): ([[0, 0], [0, 0], [1, 1], [5, 5]], dict.fromkeys(range(4), ONLY_FIRST)),
    ("deny_rank", ("rank", 0)): (
        [[1, 2], [2, 3], [3, 5], [0, 4]],
        {0: [0.8909, 0.1091], 1: [0.8176, 0.1824], 2: [0.7685, 0.2315], 3: [0.5498, 0.4502]},
    ),
    ("deny_rank", ("rank", 1)): (
        [[0, 2], [0, 3], [1, 5], [5, 4]],
        {0: [0.9241, 0.0759], 1: [0.8320, 0.1680], 2: [0.8176, 0.1824], 3: [0.8581, 0.1419]},
    ),
    ("deny_rank", ("rank", 0), ("mode", "drop")): (
        [[1, 1], [2, 2], [3, 3], [0, 0]],
        dict.fromkeys(range(4), ONLY_FIRST),
    ),
    ("deny_rank", ("rank", 1), ("mode", "drop")): (
        [[0, 0], [0, 0], [1, 1], [5, 5]],
        dict.fromkeys(range(4), ONLY_FIRST),
    ),
    # algorithm 1: the four first choices are {0, 1, 5}
    ("oea", ("k0", 1)): (KEPT_015, WEIGHTS_015),
    ("oea", ("k0", 2)): (VANILLA_IDS, {}),
    # tokens 0 (.544) and 3 (.625) reach p with one expert, 1 and 2 insist on both: {0, 1, 2, 3, 5}
    ("oea", ("k0", 2), ("p", 0.5)): (VANILLA_IDS, {}),
    # a second expert only from the first three ranks: token 1 ranks 0, 2, 3, so it runs one
    ("oea", ("k0", 1), ("max_rank", 3)): ([[0, 1], [0, 0], [1, 5], [5, 0]], {1: ONLY_FIRST, 2: [0.8176, 0.1824]}),
    ("oea", ("k0", 1), ("k_max", 3)): (
        [[0, 1, 5], [0, 1, 5], [1, 5, 0], [5, 0, 1]],
        {
            0: [0.5963, 0.3997, 0.0040],
            1: [0.8648, 0.1294, 0.0058],
            2: [0.7662, 0.1710, 0.0629],
            3: [0.7399, 0.1494, 0.1107],
        },
    ),
    # summed probability [1.1163, .9725, .4788, .4894, .2105, .7326]
    ("xshare", ("budget", 3)): (KEPT_015, WEIGHTS_015),
    ("xshare", ("budget", 3), ("warm_up", 0)): (KEPT_015, WEIGHTS_015),
    ("xshare", ("budget", 4)): ([[0, 1], [0, 3], [1, 3], [5, 0]], {1: [0.8320, 0.1680]}),
    # summed logits [6.2, 6.1, 1.7, 2.8, -.2, -1.2], as in the pull request: token 3 loses its first choice
    ("xshare", ("budget", 3), ("score", "logit"), ("warm_up", 0)): (
        [[0, 1], [0, 3], [1, 3], [0, 1]],
        {1: [0.8320, 0.1680], 3: [0.5744, 0.4256]},
    ),
    # and keeps it, for itself alone, with a warm-up
    ("xshare", ("budget", 3), ("score", "logit"), ("warm_up_for", "token")): (
        [[0, 1], [0, 3], [1, 3], [5, 0]],
        {1: [0.8320, 0.1680]},
    ),
    ("xshare", ("budget", 2), ("max_batch", 3)): (VANILLA_IDS, {}),
    # gains per token: 0 .335, 1 .295, 5 .197, 2 .099
    ("coverage", ("power", 1.0), ("tolerance", 0.15)): (KEPT_015, WEIGHTS_015),
    ("coverage", ("power", 1.0), ("tolerance", 0.25)): (
        [[0, 1], [0, 1], [1, 0], [0, 1]],
        {1: [0.8699, 0.1301], 2: [0.9241, 0.0759], 3: [0.5744, 0.4256]},
    ),
    ("coverage", ("tolerance", None), ("budget", 3)): (KEPT_015, WEIGHTS_015),
    # log gains per token: 0 2.547, 1 .850, 5 .326, 2 .123, 3 .086
    ("coverage", ("utility", "log"), ("tolerance", 0.2)): (KEPT_015, WEIGHTS_015),
    ("coverage", ("utility", "log"), ("tolerance", 0.1)): ([[0, 1], [0, 2], [1, 5], [5, 0]], {2: [0.8176, 0.1824]}),
    ("coverage", ("utility", "log"), ("tolerance", 0.1), ("budget", 3)): (KEPT_015, WEIGHTS_015),
    ("coverage", ("utility", "log"), ("tolerance", 0.9), ("guarantee", 1)): (KEPT_015, WEIGHTS_015),
    # the first choices have probabilities .544, .409, .453, .625
    ("top_p", ("p", 0.5)): ([[0, 0], [0, 2], [1, 3], [5, 5]], {0: ONLY_FIRST, 3: ONLY_FIRST}),
    # the ratios of second to first are .670, .905, .741, .202
    ("min_p", ("ratio", 0.7)): ([[0, 0], [0, 2], [1, 3], [5, 5]], {0: ONLY_FIRST, 3: ONLY_FIRST}),
    ("keep_ranks", ("ranks", 1)): ([[0, 0], [0, 0], [1, 1], [5, 5]], dict.fromkeys(range(4), ONLY_FIRST)),
    # a calibrated ratio of .9 for the second expert; 2 is most like 1, 3 most like 0 (FACTS)
    ("naee",): ([[0, 0], [0, 2], [1, 1], [5, 5]], dict.fromkeys((0, 2, 3), ONLY_FIRST)),
    ("naee", ("strength", 1 / 3)): ([[0, 1], [0, 2], [1, 3], [5, 5]], {3: ONLY_FIRST}),
    ("sere", ("primary", 1)): ([[0, 1], [0, 1], [1, 0], [5, 0]], {}),
    ("sere", ("primary", 1), ("threshold", 0.25)): ([[0, 1], [0, 1], [1, 3], [5, 0]], {}),
    ("sere", ("primary", 1), ("metric", "cka")): ([[0, 1], [0, 0], [1, 1], [5, 0]], {}),
    ("sere", ("primary", 2)): (VANILLA_IDS, {}),
    # draws as recorded once: a hash, so the same on every machine
    ("random_keep", ("keep_experts", 3)): (
        [[0, 3], [0, 3], [3, 5], [5, 0]],
        {0: [0.9427, 0.0573], 1: [0.8320, 0.1680], 2: [0.7685, 0.2315]},
    ),
    ("random_keep", ("keep_experts", 3), ("seed", 1)): (
        [[2, 3], [2, 3], [3, 5], [5, 3]],
        {0: [0.5744, 0.4256], 1: [0.8176, 0.1824], 2: [0.7685, 0.2315], 3: [0.9427, 0.0573]},
    ),
    ("reassign", ("fraction", 1.0)): (
        [[5, 2], [1, 3], [2, 4], [3, 4]],
        {0: [0.0759, 0.9241], 1: [0.4256, 0.5744], 2: [0.6900, 0.3100], 3: [0.2689, 0.7311]},
    ),
    # variances of the probabilities .0442, .0256, .0277, .0435
    ("reassign", ("fraction", 1.0), ("gate", "high"), ("threshold", 0.03)): (
        [[5, 2], [0, 2], [1, 3], [3, 4]],
        {0: [0.0759, 0.9241], 3: [0.2689, 0.7311]},
    ),
    ("reassign", ("fraction", 1.0), ("gate", "low"), ("threshold", 0.03), ("new_weight", "slot")): (
        [[0, 1], [1, 3], [2, 4], [5, 0]],
        {},
    ),
    # 4, 1, and of the two at .4 the lower, 3: [2.6 .2 -1], [.1 .4 .3], [2.5 2.2 -.5], [.9 0 1]
    ("static_mask", ("keep_experts", 3)): (
        [[1, 3], [3, 4], [1, 3], [4, 1]],
        {0: [0.9168, 0.0832], 1: [0.5250, 0.4750], 3: [0.5250, 0.4750]},
    ),
    ("static_mask", ("keep_experts", 6)): (VANILLA_IDS, {}),
    ("lexi", ("mean_k", 1.0)): ([[0, 0], [0, 0], [1, 1], [5, 5]], dict.fromkeys(range(4), ONLY_FIRST)),
    ("lexi", ("mean_k", 2.0)): (VANILLA_IDS, {}),
}


@pytest.mark.parametrize("case", GOLDEN, ids=str)
def test_policy(case: tuple) -> None:
    name, *parameters = case
    ids, changed = GOLDEN[case]
    policy = build_policy(name, **dict(parameters))
    if isinstance(policy, Calibrated):
        policy = policy.calibrated(FACTS)
    out = policy.bind(SHAPE)(vanilla(), STEP, RULE)
    assert out.experts.tolist() == ids
    for row in range(4):
        assert out.weights[row].tolist() == pytest.approx(changed.get(row, VANILLA_WEIGHTS[row]), abs=1e-4)


def test_a_router_that_does_not_renormalise_keeps_its_top_k_mass() -> None:
    weights, experts = LOGITS.softmax(-1).topk(2)
    routing = Routing(logits=LOGITS, experts=experts, weights=weights)
    out = build_policy("lynx_v1_latency", keep_experts=2)(routing, STEP, RouterRule(score="softmax", renormalize=False))
    assert out.experts.tolist() == [[0, 1], [0, 1], [1, 0], [0, 1]]
    assert out.weights.sum(-1).tolist() == pytest.approx([0.9086, 0.7788, 0.7889, 0.7512], abs=1e-4)
    assert (out.weights[:, 0] / out.weights[:, 1]).tolist() == pytest.approx(
        [1.4918, 6.6859, 12.1825, 1.3499], abs=1e-3
    )


def test_lynx_bins_decide_before_the_batch() -> None:
    """alpha=1, beta=2: token 0 prefers expert 2 (bin -1) to 3 (bin -2) however much the others want 3."""
    logits = torch.tensor([[4.0, 0.0, 2.6, 1.9], [0.0, -9.0, -9.0, 5.0], [0.0, -9.0, -9.0, 5.0]])
    weights, experts = logits.softmax(-1).topk(1)
    step = StepContext(
        layer=0,
        decode=torch.ones(3, dtype=torch.bool),
        lane=torch.zeros(3, dtype=torch.long),
        live=torch.ones(3, dtype=torch.bool),
        num_lanes=1,
        key=torch.tensor([0]),
        row=torch.arange(3) << 32,
    )
    top_two = Routing(logits=logits, experts=logits.topk(2).indices, weights=logits.softmax(-1).topk(2).values)
    out = build_policy("lynx", alpha=1.0, beta=2)(top_two, step, RULE)
    assert out.experts[0].tolist() == [0, 2]
    one = build_policy("lynx", alpha=1.0, beta=2)(Routing(logits=logits, experts=experts, weights=weights), step, RULE)
    assert one.experts.tolist() == [[0], [3], [3]]
