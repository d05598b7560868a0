"""What a preset says of its checkpoint's own files: plans go by it, the files are held against it, ids are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from lynx_exp.config import CheckpointConfig, Config, ModelConfig, config_folder
from lynx_exp.run import cost_estimate
from lynx_exp.run.checkpoint_lines import checkpoint_lines
from lynx_exp.run.cost_estimate import GIB, architecture
from lynx_exp.run.declared_checkpoint import checkpoint_mismatch
from lynx_exp.run.model_facts import known_facts
from lynx_exp.run.storage import Share, bytes_of_weight, kept_storage, shares
from lynx_exp.store.identity import cell_ids
from tests.run.fakes import TINY

SHAPE = {"model_type": "mixtral", **TINY}
SAYS = CheckpointConfig(
    generation={"temperature": 0.6, "top_k": 20},
    context=128,
    template="required",
    thinking="flag",
    flag="enable_thinking",
    unverified=["generation", "thinking"],
)
MODEL = ModelConfig(kind="hub", id="no/where", shape=SHAPE, checkpoint=SAYS)
PRESETS = sorted(path.stem for path in (config_folder() / "model").glob("*.yaml") if "shape:" in path.read_text())


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def preset(name: str) -> ModelConfig:
    node = OmegaConf.to_container(OmegaConf.load(config_folder() / "model" / f"{name}.yaml"))
    assert isinstance(node, dict)
    fields: dict[str, Any] = {str(key): value for key, value in node.items()}
    return ModelConfig(**fields | {"checkpoint": CheckpointConfig(**fields["checkpoint"])})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_how_its_model_wants_to_be_asked(name: str) -> None:
    model = preset(name)
    says, shape = model.checkpoint, model.shape
    positions = shape.get("max_position_embeddings") or shape["max_seq_len"]
    assert says.context is not None and says.context <= positions
    assert (says.storage is not None) == (name in ("gpt_oss_20b", "gpt_oss_120b", "deepseek_v3_1"))
    if says.generation:
        assert 0.5 <= says.generation["temperature"] <= 1.0, "as reasoning models are sampled"
    for field in says.unverified:
        assert getattr(says, field) not in (None, {}), "of what is not said there is nothing to verify"
    assert known_facts(model, plan=True).storage == says.storage


def test_no_cell_is_another_by_it(config: Callable[..., Config]) -> None:
    def ids(model: ModelConfig) -> object:
        return cell_ids(asdict(config(model=model)), model_digest="m", data_digests={}, code="c")

    assert ids(MODEL) == ids(replace(MODEL, checkpoint=CheckpointConfig()))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"generation": {"top_k": -1}}, r"model.checkpoint.generation.top_k=-1: must be a number, at least 0"),
        ({"generation": {"top_k": 0.5}}, r"model.checkpoint.generation.top_k=0.5: must be a whole number"),
        ({"generation": {"top_p": 7}}, r"model.checkpoint.generation.top_p=7: must be above 0 and at most 1"),
        (
            {"generation": {"temperature": 1e9}},
            r"model.checkpoint.generation.temperature=1000000000.0: must be 0 \(greedy\), or from",
        ),
        ({"generation": {"topk": 1}}, r"model.checkpoint.generation=topk: must be one of temperature, top_p, top_k"),
        ({"thinking": "flag"}, r"model.checkpoint.flag=null: goes with model.checkpoint.thinking=flag"),
        ({"template": "none", "thinking": "always"}, r"model.checkpoint.thinking=always: is a template's"),
        ({"unverified": ["shape"]}, r"model.checkpoint.unverified=shape: must be one of"),
        ({"storage": "int4"}, r"model.checkpoint.storage=int4: must be one of float8, mxfp4"),
    ],
)
def test_bad_fields(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        CheckpointConfig(**fields)


def files(folder: Path, *, template: str | None = "{% if enable_thinking %}", **generation: Any) -> Path:
    folder.mkdir(exist_ok=True)
    stated = {"do_sample": True, "temperature": 0.6, "top_k": 20} | generation
    (folder / "generation_config.json").write_text(json.dumps(stated))
    (folder / "tokenizer_config.json").write_text(json.dumps({} if template is None else {"chat_template": template}))
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    return folder


def test_files_that_say_the_same_are_no_note(tmp_path: Path) -> None:
    assert checkpoint_mismatch(SAYS, files(tmp_path / "same"), 128, "M") is None
    bare = tmp_path / "bare"
    bare.mkdir()
    assert checkpoint_mismatch(SAYS, bare, None, "M") is None, "what is not there says nothing"
    (tmp_path / "same/chat_template.jinja").write_text("{{ enable_thinking }}")
    (tmp_path / "same/tokenizer_config.json").write_text("{}")
    assert checkpoint_mismatch(SAYS, tmp_path / "same", 128, "M") is None, "a template in a file of its own"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0.7}, "generation.temperature=0.6 (generation_config.json: 0.7)"),
        ({"top_k": None}, "generation.top_k=20 (generation_config.json: None)"),
        ({"do_sample": False}, "generation.temperature=0.6 (generation_config.json: 0.0)"),
        ({"template": None}, "template=required (tokenizer: no chat template)"),
        ({"template": "{{ messages }}"}, "thinking=flag (chat template: no enable_thinking)"),
    ],
)
def test_a_mismatch_names_both_in_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = checkpoint_mismatch(SAYS, files(tmp_path / "other", **changes), 128, "M")
    assert found is not None and said in found and "\n" not in found
    assert found.startswith("model.checkpoint of M is not what its files say, which are taken: ")


def test_other_words_of_a_template_context_and_storage(tmp_path: Path) -> None:
    folder = files(tmp_path / "files")
    never = replace(SAYS, thinking="none", flag=None)
    assert "thinking=none (chat template: enable_thinking)" in str(checkpoint_mismatch(never, folder, 128, "M"))
    effort = replace(SAYS, thinking="effort", flag=None)
    assert "thinking=effort (chat template: no reasoning_effort)" in str(checkpoint_mismatch(effort, folder, 128, "M"))
    base = replace(SAYS, template="none", thinking=None, flag=None)
    assert "template=none (tokenizer: a chat template)" in str(checkpoint_mismatch(base, folder, 128, "M"))
    assert "context=128 (config.json: 64 positions)" in str(checkpoint_mismatch(SAYS, folder, 64, "M"))
    packed = replace(SAYS, storage="mxfp4")
    assert "storage=mxfp4 (config.json: null)" in str(checkpoint_mismatch(packed, folder, 128, "M"))
    config = {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "storage=null (config.json: float8)" in str(checkpoint_mismatch(SAYS, folder, 128, "M"))


def test_the_note_comes_before_the_run(bench: Any, config: Callable[..., Config], tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = files(tmp_path / "model", temperature=0.9)
    (folder / "config.json").write_text(json.dumps(AutoConfig.for_model("mixtral", **TINY).to_dict(), default=str))
    model = replace(MODEL, id=str(folder))
    bench.run([config(model=model), config({"name": "no_drop"}, model=model)])
    lines = [line for line in bench.text().splitlines() if line.startswith("note: model.checkpoint of ")]
    assert len(lines) == 1 and "temperature=0.6 (generation_config.json: 0.9)" in lines[0]


def asked(plain: Config, model: ModelConfig = MODEL, **task: Any) -> Config:
    return replace(plain, model=model, plan=True, task=replace(plain.task, **task))


def test_a_plan_samples_as_the_preset_says(bench: Any, config: Callable[..., Config]) -> None:
    sampled = replace(config().task.generation, source="model")
    bench.run([asked(config(), generation=sampled)])
    said = "note: task.generation=model: no/where answers with temperature=0.6, top_k=20, as its preset says of its "
    assert f"{said}generation_config.json (unverified)" in bench.text()
    unknown = replace(MODEL, checkpoint=CheckpointConfig())
    with pytest.raises(ValueError, match="^task.generation=model: no/where is not here, and its preset does not know"):
        bench.run([asked(config(), unknown, generation=sampled)])


@pytest.mark.parametrize(
    ("thinking", "why"),
    [
        ("none", "never thinks"),
        ("always", "always thinks: its chat template has no flag for it"),
        ("effort", "thinks as task.chat_template_args.reasoning_effort says"),
    ],
)
def test_a_switch_that_the_template_lacks_is_refused(
    thinking: str, why: str, bench: Any, config: Callable[..., Config]
) -> None:
    says = CheckpointConfig(template="required", thinking=thinking, unverified=["thinking"])
    model = replace(MODEL, checkpoint=says)
    with pytest.raises(ValueError, match=rf"^task.thinking=true: no/where {why}.*thinking={thinking} \(unverified\)"):
        bench.run([asked(config(), model, apply_chat_template=True, thinking=True)])
    flags = {"apply_chat_template": True, "chat_template_args": {"enable_thinking": False}}
    with pytest.raises(ValueError, match=r"^task.chat_template_args.enable_thinking=false: the template of no/where"):
        bench.run([asked(config(), model, **flags)])
    assert bench.engine.opened == 0


def test_turns_are_planned_where_there_is_a_template(bench: Any, config: Callable[..., Config]) -> None:
    bench.run([asked(config(), apply_chat_template=True, thinking=True)])
    assert "1 to run" in bench.text() and "was tuned to its" not in bench.text()
    bench.run([asked(config())])
    assert "no/where was tuned to its chat template; asked without it: " in bench.text()
    base = replace(MODEL, checkpoint=CheckpointConfig(template="none"))
    with pytest.raises(ValueError, match="^task.apply_chat_template=true: no/where has no chat template"):
        bench.run([asked(config(), base, apply_chat_template=True)])


def lines(model: ModelConfig, prompt: int, new: int, truncate: str = "error", **facts: Any) -> list[str]:
    known = {"name": "M", "context": 4096, "declared": True, "storage": None} | facts
    task = SimpleNamespace(name="t", apply_chat_template=True)
    request = SimpleNamespace(prompt="x" * prompt, max_new_tokens=new, continuation=None)
    cell = SimpleNamespace(
        config=SimpleNamespace(
            model=model,
            task=task,
            truncate=truncate,
            backend=facts.pop("backend", "transformers"),
            hardware=SimpleNamespace(is_named=True, device=facts.pop("device", "cuda")),
        ),
        model=SimpleNamespace(**known),
        tasks=[SimpleNamespace(name="t", requests=[request])],
        dtype="bfloat16",
        device="cpu",
    )
    return list(checkpoint_lines([cell]))  # type: ignore[list-item]


def test_a_prompt_and_its_answer_beyond_the_context_are_said_and_what_would_do() -> None:
    assert lines(MODEL, 4 * 64, 64) == []
    (said,) = lines(MODEL, 4 * 64, 65)
    assert said == (
        "DOES NOT FIT the context: t: a prompt of about 64 tokens and 65 new ones exceed the 128 of M; "
        "task.generation.max_gen_toks=64 would do"
    )
    assert lines(MODEL, 4 * 200, 64, "left")[0].endswith("exceed the 128 of M: truncate=left cuts its beginning")
    assert "would do with truncate=left" in lines(MODEL, 4 * 200, 64)[0]
    doubted = replace(MODEL, checkpoint=replace(SAYS, unverified=["context"]))
    assert "exceed the 128 of M (unverified);" in lines(doubted, 4 * 64, 65)[0]
    silent = replace(MODEL, checkpoint=CheckpointConfig())
    assert lines(silent, 4 * 64, 65) == [] and "exceed the 4096 of M;" in lines(silent, 4 * 4096, 1)[0]


def test_how_it_is_stored_is_said() -> None:
    (said,) = lines(MODEL, 4, 4, storage="mxfp4")
    assert said.startswith(
        "stored as MXFP4, 0.531 bytes a weight of an expert, as transformers, where the card has kernels"
    )
    assert lines(MODEL, 4, 4, storage="gptq") == [], "of other methods nothing is known"


@pytest.mark.parametrize(("name", "gib"), [("gpt_oss_20b", 12.8), ("gpt_oss_120b", 60.8)])
def test_mxfp4_takes_what_the_published_files_take(name: str, gib: float) -> None:
    """As OpenAI's card of the two models gives the sizes of their checkpoints."""
    model = preset(name)
    cell: Any = SimpleNamespace(
        config=SimpleNamespace(model=model, backend="transformers"), model=known_facts(model, plan=True)
    )
    assert kept_storage(cell, "cpu") is None and kept_storage(cell, "cuda") == "mxfp4"
    cell.config.backend = "vllm"
    assert kept_storage(cell, "cpu") == "mxfp4"
    held = cost_estimate._stored(*architecture(cell), 2, "mxfp4")
    assert held is not None and held / GIB == pytest.approx(gib, rel=0.03)
    weights = dict(cost_estimate.weightless(*architecture(cell)).named_parameters())  # type: ignore[union-attr]
    share = shares(weights, 2, "mxfp4")
    assert share.other == 1.0 and share.expert == pytest.approx(4.25 / 16, rel=0.01)
    assert shares(weights, 2, None) == Share()


def test_float8_is_of_every_matrix_but_head_embedding_and_routers() -> None:
    import torch

    weight = torch.zeros(256, 256, device="meta")
    names = ("layers.0.self_attn.o_proj.weight", "layers.0.mlp.experts.down_proj", "layers.0.mlp.gate_proj.weight")
    for name in names:
        assert bytes_of_weight(name, weight, 2, "float8") == 256**2 + 4 * 4, "and a scale for each of four blocks"
    for name in ("lm_head.weight", "embed_tokens.weight", "layers.0.mlp.gate.weight", "layers.0.norm.weight"):
        assert bytes_of_weight(name, weight, 2, "float8") == 2 * 256**2
    assert bytes_of_weight(names[0], weight, 2, "mxfp4") == 2 * 256**2, "MXFP4 is of experts alone"


def test_a_roofline_reads_what_is_stored(bench: Any, config: Callable[..., Config]) -> None:
    from lynx_exp.config import HardwareConfig

    card = HardwareConfig(name="card", memory_gib=80.0, bandwidth_gb_s=1000.0, tflops=1000.0)
    plain = replace(config(), plan=True, hardware=card)
    shape = {"model_type": "gpt_oss", **TINY, "num_hidden_layers": 2, "hidden_size": 2048, "intermediate_size": 2048}
    steps = {}
    for storage in (None, "mxfp4"):
        model = ModelConfig(kind="hub", id="no/where", shape=shape, checkpoint=CheckpointConfig(storage=storage))
        before = len(bench.text())
        bench.run([replace(plain, model=model)])
        said = bench.text()[before:]
        weights = float(said.partition("  weights ")[2].partition(" of ")[0])
        steps[storage] = (weights, float(said.partition("a step of them ")[2].partition(" ms")[0]))
    assert steps["mxfp4"][0] < steps[None][0] and steps["mxfp4"][1] < steps[None][1]


def test_a_model_of_the_hub_is_told_what_its_benchmark_is(bench: Any, config: Callable[..., Config]) -> None:
    bench.run([asked(config(), name="mini_gsm8k")])
    assert (
        "note: mini_gsm8k is made for the bundled model, and says little of no/where; task=gsm8k is the" in bench.text()
    )
    before = len(bench.text())
    bench.run([asked(config(), name="gsm8k")])
    assert "is made for the bundled model" not in bench.text()[before:]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("task.think_end=)", """quote it twice: 'task.think_end=")"'"""),
        ("task.system_instruction=a: b, {c", """quote it twice: 'task.system_instruction="a: b, {c"'"""),
        ("""task.think_end='x""", "task.think_end='x: "),
    ],
)
def test_a_value_that_hydra_cannot_read_says_how_to_quote_it(typed: str, said: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from lynx_exp.explain import explain

    parser = OverridesParser.create()
    with pytest.raises(OverrideParseException) as caught:
        parser.parse_overrides([typed])
    line = explain(caught.value, [typed])
    assert line is not None and line.startswith(typed) and said in line and "\n" not in line
    if "twice" in said:
        quoted = line.rpartition("twice: '")[2].removesuffix("'")
        assert parser.parse_override(quoted).value() == typed.partition("=")[2], "what it says to type is read"
