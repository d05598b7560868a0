"""Checkpoints that are not the model's: refused by the names of their weights, or of the file that is broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_exp import cli
from lynx_exp.config import ModelConfig
from lynx_exp.engine import Engine
from lynx_exp.models import BUNDLED, load_tokenizer, load_weights
from lynx_exp.models.checkpoint import differences
from lynx_exp.models.families import families, reloaded
from lynx_exp.models.tiny import tiny_model
from lynx_exp.results import main as results
from lynx_exp.run.model_facts import inspect_model

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The bundled model, to be damaged."""
    return Path(shutil.copytree(BUNDLED["lynx_tiny"], tmp_path / "model"))


def load(folder: Path, **more) -> tuple[torch.nn.Module, str | None]:
    return load_weights(str(folder), dtype=torch.float32, device=CPU, **more)


def change(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("family", families(), ids=str)
def test_a_whole_checkpoint_of_any_family_is_whole(family):
    """Tied weights, buffers that are not stored, and keys that a class ignores are no difference."""
    model = tiny_model(family.model_types[0])
    loaded = reloaded(model).state_dict()
    kept = model.state_dict()
    assert kept.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in kept.items())


@pytest.mark.parametrize(("tied", "stored"), [(True, False), (True, True), (False, True)])
def test_tied_weights_may_be_stored_or_not(tied, stored, tmp_path):
    model = tiny_model("mixtral", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    if stored:
        rewrite(tmp_path, lambda weights: weights.update({"lm_head.weight": model.lm_head.weight.detach().clone()}))
    assert load(tmp_path)[1] is None


PARTIAL = {
    "five layers too few": (
        lambda folder: change(folder, num_hidden_layers=9),
        r"\d+ weights missing from the checkpoint: model\.layers\.4\.\S+, \S+, \S+ and \d+ more",
    ),
    "two layers too many": (
        lambda folder: change(folder, num_hidden_layers=2),
        r"\d+ weights in the checkpoint that the model has no place for: model\.layers\.2\.\S+, \S+, \S+ and \d+ more",
    ),
    "no router": (
        lambda folder: rewrite(folder, lambda weights: weights.pop(router_of(weights))),
        r"1 weight missing from the checkpoint: model\.layers\.0\.mlp\.gate\.weight;",
    ),
    "another router": (
        lambda folder: rewrite(folder, lambda weights: weights.update({router_of(weights): torch.zeros(3, 5)})),
        r"1 weight of another shape: model\.layers\.0\.mlp\.gate\.weight \(3x5 in the checkpoint, 16x\d+ in",
    ),
    "nothing of it": (
        lambda folder: save_file({"w": torch.zeros(2)}, folder / WEIGHTS, {"format": "pt"}),
        r"weights missing from the checkpoint: .*; 1 weight in the checkpoint that the model has no place for: w;",
    ),
}


def router_of(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(weights) if name.endswith("block_sparse_moe.gate.weight"))


@pytest.mark.parametrize(("damage", "message"), PARTIAL.values(), ids=PARTIAL)
def test_a_checkpoint_that_is_not_whole_is_refused_by_the_names_of_its_weights(damage, message, folder):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and "model.allow_partial=true" in str(caught.value)
    one, said = load(folder, allow_partial=True)
    other, again = load(folder, allow_partial=True)
    assert said == again and said in str(caught.value)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    assert Engine.from_pretrained(str(folder), allow_partial=True).partial == said
    assert Engine.from_pretrained("lynx_tiny").partial is None


def test_a_single_expert_that_is_missing_is_named(folder):
    """transformers cannot put a layer's experts together without it."""
    lost = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    rewrite(folder, lambda weights: weights.pop(lost))
    for allow in (False, True):
        with pytest.raises(ValueError, match=f"it cannot be loaded: 1 weight missing from the checkpoint: {lost}$"):
            load(folder, allow_partial=allow)


def test_a_part_of_an_expert_that_is_missing_is_named_by_its_layer(folder):
    rewrite(folder, lambda weights: weights.pop("model.layers.1.block_sparse_moe.experts.3.w2.weight"))
    with pytest.raises(ValueError, match=r"1 weight of another shape: model\.layers\.1\.mlp\.experts\.down_proj \(15x"):
        load(folder)


def test_allowing_a_partial_checkpoint_leaves_the_callers_random_numbers_alone(folder):
    change(folder, num_hidden_layers=5)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load(folder, allow_partial=True)
    assert torch.equal(torch.rand(3), wanted)


def header(text: str, after: int = 0) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + bytes(after)


TENSOR = '{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
BROKEN: dict[str, tuple[str, bytes | str, str]] = {
    "empty": (WEIGHTS, b"", "not safetensors, or cut off: its 0 bytes"),
    "junk": (WEIGHTS, b"\xff" * 64, "not safetensors, or cut off: its 64 bytes do not hold the header"),
    "pointer": (WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    "header cut": (WEIGHTS, header(TENSOR)[:30], "not safetensors, or cut off"),
    "header no json": (WEIGHTS, header("{'w'}"), "its header is not JSON"),
    "header deep": (WEIGHTS, header("[" * 100_000), "its header is not JSON"),
    "header a list": (WEIGHTS, header("[1]"), "its header is not an object"),
    "header too long": (WEIGHTS, (2**62).to_bytes(8, "little") + b"{}", "not safetensors, or cut off"),
    "tensors cut": (WEIGHTS, header(TENSOR, 4), "describes 8 bytes of tensors, and the file holds 4"),
    "tensors too many": (WEIGHTS, header(TENSOR, 40), "describes 8 bytes of tensors, and the file holds 40"),
    "tensors nowhere": (WEIGHTS, header('{"w": {"dtype": "F32", "shape": [2]}}'), "says nowhere where w lies"),
    "tensor lies": (WEIGHTS, header(TENSOR.replace("[2]", "[3]"), 8), "InvalidHeader|TensorInvalidInfo|cannot be"),
    "config a list": ("config.json", "[]", "config.json: holds a list, must hold an object"),
    "config cut": ("config.json", '{"model_type": ', "config.json: not JSON"),
    "config deep": ("config.json", '{"a":' * 100_000, "config.json: (nested too deeply|not JSON)"),
    "no heads": ("config.json", "num_attention_heads", "cannot be loaded: ZeroDivisionError|num_attention_heads"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_in_one_line(name, content, message, folder):
    path = folder / name
    if content == "num_attention_heads":
        change(folder, num_attention_heads=0)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"model={folder}: it cannot be loaded: ") and "\n" not in text and len(text) < 700


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"model": 5}', "{", '{"version": "1.0"}', "[" * 100_000])
def test_a_broken_tokenizer_is_named_in_one_line(content, folder):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="its tokenizer cannot be loaded: ") as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_told_how_to_get_one(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError) as caught:
        load_tokenizer(str(folder))
    assert str(caught.value) == (
        f"model={folder}: its tokenizer cannot be loaded: the folder holds none; "
        "`tokenizer.save_pretrained(folder)` writes it there"
    )


def test_what_this_machine_lacks_is_no_fault_of_the_checkpoint(folder, monkeypatch):
    from transformers import AutoModelForCausalLM

    for error in (MemoryError(), ImportError("needs kernels"), RuntimeError("can't allocate memory")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
        with pytest.raises(type(error)):
            load(folder)


def test_no_difference_says_nothing():
    assert differences({"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "config.json holds a list, must hold an object"),
        ("null", "config.json holds a NoneType, must hold an object"),
        ('{"a":' * 100_000, "config.json is nested too deeply"),
        ('{"num_local_experts": ', "config.json is not JSON"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads=0: must be a number from 1"),
        ({"vocab_size": "many"}, "config.json: vocab_size='many': must be a number from 1"),
        ({"num_hidden_layers": -2}, "config.json: num_hidden_layers=-2: must be a number from 1"),
        ({"num_local_experts": 0, "architectures": 3}, "is not a Mixture-of-Experts model"),
        ({"num_experts_per_tok": 99}, "its configuration has 16 experts, of which it takes 99"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_before_anything_loads(content, message, folder):
    if isinstance(content, dict):
        change(folder, **content)
    else:
        (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"^model.id={folder}: .*{message}") as caught:
        inspect_model(ModelConfig(kind="hub", id=str(folder)))
    assert "\n" not in str(caught.value)


def test_cells_of_a_partial_checkpoint_say_so_wherever_they_are_shown(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    change(folder, num_hidden_layers=5)
    asked = ["model=hub", f"model.id={folder}", "task=mini_gsm8k", "policy=vanilla", "limit=1", "batch_size=1"]
    asked += ["task.generation.max_gen_toks=2"]
    assert cli.run(asked) == 2
    assert "missing from the checkpoint: model.layers.4.input_layernorm.weight" in capsys.readouterr().err
    assert cli.run([*asked, "model.allow_partial=true", "study_name=partial"]) == 0
    study = tmp_path / "results" / "partial"
    (cell,) = [path.parent for path in study.glob("*/DONE")]
    said = "9 weights missing from the checkpoint: model.layers.4.input_layernorm.weight"
    assert json.loads((cell / "provenance.json").read_text())["model"]["partial"].startswith(said)
    assert json.loads((cell / "status.json").read_text())["invalid"][0].startswith(f"model.allow_partial: {said}")
    capsys.readouterr()
    results.main(["table", str(study)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "not to be trusted: 1 cell" in shown and f"model.allow_partial: {said}" in shown
