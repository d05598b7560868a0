"""From configs to cells: everything that can be wrong is found here, for all cells, before a model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_exp.config import AsDict, Config, ModelConfig, PerNode, TaskConfig
from lynx_exp.extensions import policy_source
from lynx_exp.run.batch_plan import check_documents
from lynx_exp.run.batching_mode import batching_note, with_batching
from lynx_exp.run.declared_task import declared_where_missing
from lynx_exp.run.load_tasks import LoadTask, asks_the_model, data_digests, sandbox_of, tasks_of, with_fillers
from lynx_exp.run.measured_for import Taken, check_aligned, is_aligned, measured_for, unsaid_batches
from lynx_exp.run.model_facts import ModelFacts, known_facts
from lynx_exp.run.one_form import in_one_form
from lynx_exp.run.unsupported import check_layers, check_lengths, check_match, check_parallel, check_threads, longest_of
from lynx_exp.store.done import is_done
from lynx_exp.store.identity import cell_ids, code_digest, digest

if TYPE_CHECKING:
    from lynx_exp.routing import ModelShape, Policy


from lynx_exp.run.planned_cell import Cell, Task

_Question = tuple[str, int | None, str | None, bool]
"""What configs ask: task, limit, model where what is asked depends on it, whether lanes are filled."""


def prepare_cells(configs: Sequence[Config], load: LoadTask, *, here: bool = True) -> list[Cell]:
    """Check every config against policies, tasks and models; load tasks; compute ids. A cell a config, in order.

    `load(name, limit=..., settings=...)` gives an EvalTask. Not `here`: devices and sandboxes are those of other
    machines, named and not looked for. Raises ValueError naming field, value and what is allowed.
    """
    import torch

    from lynx_exp.models import resolve_device, resolve_dtype
    from lynx_exp.routing import ModelShape, build_policy, layer_range
    from lynx_exp.routing.calibration import NotMeasured, for_batches
    from lynx_exp.routing.protected import with_experts_named

    # a missing package is told before any task is loaded
    if here and any(config.backend == "vllm" for config in configs):
        from lynx_exp.vllm_backend.startup import check_installed

        check_installed()
    # a sweep has thousands of configs that share most nodes: each node is looked at once
    as_dict = AsDict()
    model_key: PerNode[ModelConfig, str] = PerNode(lambda model: digest(asdict(model)))
    task_key: PerNode[TaskConfig, str] = PerNode(lambda task: digest(asdict(task)))

    def question_of(config: Config) -> _Question:
        """Equal for configs that ask the same."""
        own = model_key(config.model) if asks_the_model(config.task) else None
        return task_key(config.task), config.limit, own, config.is_filled

    # `build` sees a node alone, and whether it is vanilla depends on the config that it stands in
    owners = {id(config.policy): config for config in configs}

    @PerNode
    def build(node: Mapping[str, object]) -> Policy | None:
        own = owners[id(node)]
        with _about_the_policy():
            built = build_policy("vanilla" if own.is_untouched else own.policy_name, **own.policy_params)
        return None if own.is_untouched else built

    policies = [build(config.policy) for config in configs]

    # models are described from their files, without loading weights
    facts: dict[str, ModelFacts] = {}
    for config in configs:
        if (name := model_key(config.model)) not in facts:
            facts[name] = known_facts(config.model, plan=config.plan)
            if not config.hardware.is_named:  # whose plan says what would do
                check_parallel(config.model, facts[name])
    notes = [batching_note(config, facts[model_key(config.model)]) for config in configs]
    # what `auto` comes to is settled before ids are computed: it is part of the question
    configs = [with_batching(config, facts[model_key(config.model)]) for config in configs]
    settled = [
        in_one_form(config, policy, facts[model_key(config.model)].top_k)
        for config, policy in zip(configs, policies, strict=True)
    ]
    configs = [config for config, _ in settled]
    policies = [policy and for_batches(policy, config.batch_size) for config, policy in settled]

    found: dict[_Question, tuple[Task, ...]] = {}
    checked: set[tuple[_Question, int, str]] = set()
    for config in configs:
        key = question_of(config)
        if key not in found:
            get = declared_where_missing(config, load) if config.plan else load
            found[key] = with_fillers(config, tasks_of(config, get, config.limit), get)
        if (full := (key, config.batch_size, config.choices)) not in checked:
            checked.add(full)
            for task in found[key]:
                check_documents(config, task)

    # policies are held against the models, whose E, K and layers bound their parameters
    lacks: list[str | None] = []
    taken: list[Taken] = []
    for config, policy in zip(configs, policies, strict=True):
        lacks.append(None)
        taken.append([])
        name = model_key(config.model)
        if policy is not None:
            shape = ModelShape(
                num_experts=facts[name].num_experts, top_k=facts[name].top_k, calibration=_calibration(config)
            )
            try:
                with _about_the_policy():
                    with_experts_named(_turned(config, policy, shape), shape).bind(shape)
                    check_aligned(config, policy)
                    taken[-1] = measured_for(policy, facts[name].digest)
            except NotMeasured as error:
                whole = error.of_model(_typed_model(config.model))
                if not config.plan:
                    raise whole from error
                lacks[-1] = str(whole)
            check_layers(policy, config.model)
            check_match(config.match_active, facts[name])
        if config.layers is not None:  # vanilla's, too, which leaves it aside
            layer_range(config.layers, facts[name].num_layers)

    # remembered for the same reason: one task or file serves many cells
    longest = PerNode(longest_of)
    content = cache(lambda file: hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest())
    cells = []
    for config, policy, note, lack, own in zip(configs, policies, notes, lacks, taken, strict=True):
        tasks = found[question_of(config)]
        model = facts[model_key(config.model)]
        check_lengths(config, [longest(task) for task in tasks], model.context)
        if here:
            check_threads(config.threads)
        # a device that is named may be one that only the other machine has: it is not looked for here
        device = resolve_device(config.device) if here or config.device == "auto" else torch.device(config.device)
        if config.kernel == "triton" and device.type != "cuda":
            raise ValueError(f"kernel=triton: needs a CUDA device, not device={device.type}; use kernel=auto or torch")
        if config.steps == "captured" and device.type != "cuda":
            raise ValueError(f"steps=captured: needs a CUDA device, not device={device.type}; use steps=auto or eager")
        dtype = str(resolve_dtype(config.dtype, device)).removeprefix("torch.")
        # device and dtype as they came out, since `auto` names different science on different machines
        ids = cell_ids(
            as_dict(config)
            | {"device": device.type, "dtype": dtype}
            | {"policy": config.policy if lack is not None else _with_content(config, policy, own, content)},
            model_digest=model.digest,
            data_digests=data_digests(tasks),
            code=code_digest(),
        )
        cell = Cell(
            config=config,
            policy=policy,
            model=model,
            tasks=tasks,
            ids=ids,
            dtype=dtype,
            device=device.type,
            note="; ".join(text for text in (note, unsaid_batches(config, own)) if text) or None,
            lacks=lack,
        )
        if here and any(task.runs_code for task in tasks) and not is_done(cell.folder):
            sandbox_of(config)  # found out now rather than when the model has answered
        cells.append(cell)
    return cells


def _typed_model(model: ModelConfig) -> str:
    """The model as it is typed."""
    if model.kind == "bundled":
        return f"model={model.id}"
    more = [f"model.{name}={value}" for name in ("revision", "adapter") if (value := getattr(model, name)) is not None]
    return " ".join([f"model={model.kind} model.id={model.id}", *more])


def _turned(config: Config, policy: Policy, shape: ModelShape) -> Policy:
    """With the knob of `match_active` at its end: the value that it has need not suit the model, and never runs."""
    if config.match_active is None or policy.knob is None:
        return policy
    _, most = policy.knob.bounds(shape)
    values: dict[str, Any] = {policy.knob.parameter: int(most) if policy.knob.integer else most}
    return replace(policy, **values)


def _calibration(config: Config) -> str | None:
    """The file of `calibration=auto`, if the config's model has one."""
    from lynx_exp.models import find_calibration

    return None if config.model.kind == "random" else find_calibration(config.model.id)


def _with_content(
    config: Config, policy: Policy | None, taken: Taken, content: Callable[[str], str]
) -> Mapping[str, object]:
    """The policy node, with what its calibration file holds in place of where it is, what the files hold that were
    measured for it, and the hash of an extension's source."""
    from lynx_exp.routing import Calibrated, PerLayer
    from lynx_exp.routing.calibration import AUTO
    from lynx_exp.routing.protected import asks_calibration

    if policy is None:
        return config.policy
    source = policy_source(config.policy_name)
    node = config.policy if source is None else config.policy | {"source": source}
    parts = policy.policies if isinstance(policy, PerLayer) else (policy,)
    named = [part.calibration for part in parts if isinstance(part, Calibrated)]
    named += [AUTO] if asks_calibration(policy) and not named else []
    held = [content((_calibration(config) or file) if file == AUTO else file) for file in named]
    if taken:
        kind = "alignments" if is_aligned(policy) else "budgets"
        node = node | {kind: [content(str(file)) for file, _ in taken]}
    return node | {"calibration": held[0] if len(set(held)) == 1 else held} if held else node


@contextmanager
def _about_the_policy() -> Iterator[None]:
    """A ValueError in here says that it is about the policy."""
    from lynx_exp.routing.calibration import NotMeasured

    try:
        yield
    except ValueError as error:
        text, kind = str(error), NotMeasured if isinstance(error, NotMeasured) else ValueError
        raise kind(text if text.startswith("policy") else f"policy {text}") from error
