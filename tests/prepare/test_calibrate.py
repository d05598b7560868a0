"""`lynx-prepare calibrate`: what is typed, the file, whose it is, and where it is found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.engine import Engine
from lynx_exp.models import BUNDLED, calibration_path, find_calibration, fingerprint
from lynx_exp.models.family_sizes import random_fields
from lynx_exp.prepare import command_line as cli
from lynx_exp.prepare.calibrate import CalibrateConfig
from lynx_exp.prepare.command_line import read_calibration
from lynx_exp.prepare.texts import read_texts
from lynx_exp.routing import Calibration, ModelShape, PerLayer, build_policy
from lynx_exp.routing.budgets import allocate
from lynx_exp.run.planned_cell import Cell
from lynx_exp.run.prepare_cells import prepare_cells
from lynx_exp.store.identity import folder_digest
from lynx_exp.tasks.mini import GENERATORS, held_out

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_local_experts": 4, "vocab_size": 300}
MODEL = ["model=random", *(f"model.config.{key}={value}" for key, value in SIZES.items())]
SMALL = ["sequences=6", "max_length=24", "batch_size=4", "gaussian_tokens=30", "device=cpu"]


def calibrate(*more: str) -> int:
    return cli.run(["calibrate", *MODEL, *SMALL, *more])


def model_config(seed: int = 0) -> ModelConfig:
    return replace(read_calibration(MODEL).model, seed=seed)


def engine(seed: int = 0) -> Engine:
    model = model_config()
    return Engine.from_config("mixtral", random_fields("mixtral", model.sizes, model.config), seed=seed, device="cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_a_file_that_its_model_takes_and_again_the_same_bytes(capsys) -> None:
    assert calibrate() == 0
    out = capsys.readouterr().out
    assert out.startswith("calibrations/random_mixtral.safetensors: 2 layers of 4 experts, measured on 1")
    path = Path("calibrations/random_mixtral.safetensors")
    assert list(Path("calibrations").iterdir()) == [path], "nothing half-written stays"
    for name in ("sere", "naee", "lexi", "static_mask"):
        engine().bind(build_policy(name, calibration=str(path)))
    for number in range(3):
        assert calibrate(f"out=again/{number}.safetensors") == 0
        assert Path(f"again/{number}.safetensors").read_bytes() == path.read_bytes()
    assert calibrate("seed=1", "out=other.safetensors") == 0
    assert Path("other.safetensors").read_bytes() != path.read_bytes()


def test_what_is_written_is_read_back_and_says_where_it_comes_from(folder: Path) -> None:
    Path("web.jsonl").write_text("".join(json.dumps({"text": f"line {n} of the web"}) + "\n\n" for n in range(9)))
    assert calibrate(f"data={folder}/web.jsonl", "out=a.safetensors") == 0
    found = Calibration.load("a.safetensors")
    assert found.fingerprint == fingerprint(engine().routers)
    assert found.ratio.shape == found.divergence.shape == (2, 2)
    assert {alike.shape for alike in found.similarity.values()} == {(2, 4, 4)}
    assert found.saliency.shape == found.largest.shape == (2, 4)
    found.save(Path("b.safetensors"))
    again = Calibration.load("b.safetensors")
    assert again.provenance == found.provenance and torch.equal(again.ratio, found.ratio)
    assert torch.equal(again.saliency, found.saliency) and torch.equal(again.largest, found.largest)
    assert all(torch.equal(again.similarity[metric], alike) for metric, alike in found.similarity.items())
    told = found.provenance
    assert told["model"].startswith("mixtral (random ")
    assert (told["data"], told["sequences"], told["seed"]) == ("web.jsonl", "6", "0")
    assert int(told["tokens"]) == 6 * len("line 0 of the web") and told["dtype"] == "float32"
    assert str(folder) not in Path("a.safetensors").read_bytes().decode("latin-1")


def test_another_models_file_is_refused_with_both_hashes() -> None:
    assert calibrate("out=a.safetensors") == 0
    other = engine(seed=5)
    with pytest.raises(ValueError) as refused:
        other.bind(build_policy("sere", calibration="a.safetensors"))
    text = str(refused.value)
    assert fingerprint(engine().routers)[:12] in text and fingerprint(other.routers)[:12] in text
    assert "another model" in text and "lynx-prepare calibrate" in text and "\n" not in text
    with pytest.raises(ValueError, match="made for a model of 2 layers, 4 experts, top-2; this one has 2, 8, top-2"):
        build_policy("sere", calibration="a.safetensors").bind(ModelShape(num_experts=8, top_k=2))


def test_a_file_from_before_it_held_saliencies_serves_who_needs_none() -> None:
    assert calibrate("out=a.safetensors") == 0
    replace(Calibration.load("a.safetensors"), saliency=None, largest=None).save(Path("old.safetensors"))
    engine().bind(build_policy("naee", calibration="old.safetensors"))
    with pytest.raises(ValueError, match="^static_mask: calibration=old.safetensors: was made before .*make it again"):
        engine().bind(build_policy("static_mask", calibration="old.safetensors"))


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\x00" * 64])
def test_a_missing_or_broken_file_is_one_line(content: bytes | None) -> None:
    if content is not None:
        Path("bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"naee: calibration=bad.safetensors: .*lynx-prepare calibrate") as refused:
        build_policy("naee", calibration="bad.safetensors").bind(ModelShape(num_experts=4, top_k=2))
    assert "\n" not in str(refused.value)


BAD = [
    (["seqs=3"], "seqs=3", "did you mean sequences?"),
    (["sequences=many"], "sequences=many", "an integer"),
    (["sequences=0"], "sequences=0", "at least 1"),
    (["threads=0"], "threads=0", "at least 1"),
    (["dtype=int8"], "dtype=int8", "bfloat16"),
    (["device=gpu"], "device=gpu", "cuda"),
    (["model=mixtral"], "model=mixtral", "did you mean mixtral_8x7b?"),
    (["model=hub"], "model.id", "PATH_OR_HUB_ID"),
    (["model=hub", "model.id=/no/such/model"], "model.id=/no/such/model", "no such folder"),
    (["data=nofile.txt"], "data=nofile.txt", "must be mini, or a file"),
    (["data=empty.txt"], "data=empty.txt", "no text"),
    (["data=bad.jsonl"], "data=bad.jsonl: line 2", "no field `text`"),
    (["data=broken.jsonl"], "data=broken.jsonl: line 1", "not JSON"),
    (["data=binary.txt"], "data=binary.txt", "UTF-8"),
    (["out=."], "out=.", "is a folder"),
    (["out=empty.txt/a"], "out=empty.txt/a", "is a file"),
    ([*MODEL, "max_length=5000"], "max_length=5000", "1024 positions"),
    (["model=random", "model.id=mixtrl"], "model.id=mixtrl", "did you mean mixtral?"),
]


@pytest.mark.parametrize(("arguments", "names", "allowed"), BAD, ids=[" ".join(case[0][-1:]) for case in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(arguments, names, allowed, capsys, folder) -> None:
    Path("empty.txt").write_text("\n\n")
    Path("bad.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    Path("broken.jsonl").write_text("{text}\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    before = sorted(folder.iterdir())
    assert cli.run(["calibrate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lynx-prepare: error: ") and err.count("\n") == 1, err
    assert names in err and allowed in err, err
    assert sorted(folder.iterdir()) == before


def test_ctrl_c_leaves_what_was_there(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_args: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    Path("a.safetensors").write_text("before")
    monkeypatch.setattr("lynx_exp.prepare.observe.Observed.read_noise", stop)
    assert calibrate("out=a.safetensors") == 130
    assert capsys.readouterr().err == "lynx-prepare: interrupted; nothing was written\n"
    assert [path.name for path in Path().iterdir()] == ["a.safetensors"]
    assert Path("a.safetensors").read_text() == "before"


def test_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit) as done:
        cli.run(["calibrate", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for word in ("sere", "naee", "lexi", "calibration=auto", "model=hub", "gaussian_tokens: 1024", "Ctrl-C"):
        assert word in text, word


def test_calibrate_yaml_holds_the_defaults_of_the_code() -> None:
    lynx_tiny = ModelConfig(kind="bundled", id="lynx_tiny")
    assert read_calibration([]) == CalibrateConfig(model=lynx_tiny)


def test_mini_texts_are_no_evaluation_items_and_follow_the_seed() -> None:
    texts = read_texts("mini", 200, 0)
    assert texts == read_texts("mini", 200, 0) != read_texts("mini", 200, 1)
    prompts = {item.prompt for task in GENERATORS for item in held_out(task)}
    assert len(texts) == 200 and not any(text.startswith(prompt) for text in texts for prompt in prompts)


def test_a_files_first_texts_are_read(folder: Path) -> None:
    Path("a.txt").write_text("one\n\n two \r\nthree\n")
    assert read_texts("a.txt", 2, 0) == ["one", " two "]
    assert read_texts("a.txt", 9, 0) == ["one", " two ", "three"]


def test_auto_looks_in_the_models_folder_then_where_the_command_writes(folder: Path) -> None:
    model = folder / "models" / "my-model"
    model.mkdir(parents=True)
    assert find_calibration(str(model)) is None and find_calibration("owner/Some-MoE") is None
    assert calibration_path("owner/Some-MoE") == Path("calibrations/owner_Some-MoE.safetensors")
    for name in (str(model), "models/my-model", "./models/my-model/"):
        assert calibration_path(name) == Path("calibrations/models_my-model.safetensors")
    for name, path in ((str(model), "models_my-model"), ("owner/Some-MoE", "owner_Some-MoE")):
        file = Path(f"calibrations/{path}.safetensors")
        file.parent.mkdir(exist_ok=True)
        file.touch()
        assert find_calibration(name) == str(file)
    (model / "lynx_calibration.st").touch()
    assert find_calibration(str(model)) == str(model / "lynx_calibration.st")


def test_the_bundled_model_has_its_calibration_beside_weights_that_it_is_no_part_of(tmp_path: Path) -> None:
    file = find_calibration("lynx_tiny")
    assert file == str(BUNDLED["lynx_tiny"] / "lynx_calibration.st")
    bundled = Engine.from_pretrained("lynx_tiny", device="cpu")
    for name in ("sere", "naee", "lexi", "static_mask"):
        bundled.bind(build_policy(name))
    assert Calibration.load(file).provenance["model_digest"] == folder_digest(BUNDLED["lynx_tiny"])
    for kept in BUNDLED["lynx_tiny"].iterdir():
        if kept.name != "lynx_calibration.st":
            (tmp_path / kept.name).symlink_to(kept)
    assert folder_digest(tmp_path) == folder_digest(BUNDLED["lynx_tiny"])


def cell(policy: dict[str, Any], model: ModelConfig | None = None, batch_size: int = 4, **more: Any) -> Cell:
    config = Config(
        model=model or model_config(),
        policy=policy,
        task=TaskConfig(name="t", subtasks=["t"]),
        tracker=TrackerConfig(),
        device="cpu",
        batch_size=batch_size,
        **more,
    )
    task = SimpleNamespace(
        name="t", data_digest="d", runs_code=False, requests=(), fillers=(), fillers_digest=None, kind="choice"
    )
    return prepare_cells([config], lambda name, limit, settings: task)[0]


def test_a_cell_counts_what_its_calibration_holds_not_where_it_is() -> None:
    assert calibrate("out=here.safetensors") == 0 and calibrate("seed=1", "out=changed.safetensors") == 0
    Path("there").mkdir()
    Path("there/here.safetensors").write_bytes(Path("here.safetensors").read_bytes())
    sere = {"name": "sere", "threshold": 0.25}
    here, there, changed = (
        cell(sere | {"calibration": file})
        for file in ("here.safetensors", "there/here.safetensors", "changed.safetensors")
    )
    assert here.cell_id == there.cell_id != changed.cell_id
    assert here.pair_id == changed.pair_id
    assert there.config.policy_label == "sere(threshold=0.25, calibration=here)" and there.folder == here.folder


def test_protected_experts_and_the_calibration_that_names_them_are_part_of_a_cell() -> None:
    lynx_tiny = ModelConfig(kind="bundled", id="lynx_tiny")
    plain, none = (cell({"name": "lynx"} | more, lynx_tiny) for more in ({}, {"protect": None}))
    assert plain.cell_id == none.cell_id
    others = [
        cell({"name": "lynx", "protect": protect}, lynx_tiny)
        for protect in ("calibrated", [[1], [], [], []], [[2], [], [], []])
    ]
    assert len({each.cell_id for each in (plain, *others)}) == 4 and {each.pair_id for each in others} == {
        plain.pair_id
    }
    assert others[0].config.policy_label == "lynx(protect=calibrated)"
    with pytest.raises(ValueError, match="policy lynx: protect=calibrated: calibration=auto: this model has none"):
        cell({"name": "lynx", "protect": "calibrated"})
    with pytest.raises(ValueError, match=r"policy lynx: protect=\[9\]: must be experts of this model, 0..3"):
        cell({"name": "lynx", "protect": [[9], []]})


def test_auto_is_the_file_that_it_finds_and_is_not_shown() -> None:
    lynx_tiny = ModelConfig(kind="bundled", id="lynx_tiny")
    auto = cell({"name": "naee", "calibration": "auto"}, lynx_tiny)
    named = cell({"name": "naee", "calibration": find_calibration("lynx_tiny")}, lynx_tiny)
    silent = cell({"name": "naee"}, lynx_tiny)
    assert auto.cell_id == named.cell_id == silent.cell_id
    assert auto.config.policy_label == "naee"


@pytest.mark.parametrize("policy", ["sere", "naee", "lexi", "static_mask"])
def test_without_a_file_a_run_stops_before_a_model_loads(policy: str) -> None:
    with pytest.raises(ValueError, match=f"policy {policy}: calibration=auto: .*run `lynx-prepare calibrate model="):
        cell({"name": policy, "calibration": "auto"})
    with pytest.raises(ValueError, match=f"policy {policy}: calibration=no.safetensors: no such file"):
        cell({"name": policy, "calibration": "no.safetensors"})


@given(
    st.integers(1, 3).flatmap(
        lambda k: st.lists(st.lists(st.floats(0, 9, width=16), min_size=k, max_size=k), min_size=1, max_size=4)
    ),
    st.floats(0, 1),
)
def test_lexi_allocates_as_well_as_brute_force(table: list[list[float]], share: float) -> None:
    layers, top_k = len(table), len(table[0])
    budget = round(layers + share * layers * (top_k - 1))
    chosen = allocate(torch.tensor(table), range(1, top_k + 1), budget)
    assert len(chosen) == layers and all(1 <= k <= top_k for k in chosen) and sum(chosen) <= budget

    def cost(ks: Any) -> float:
        return sum(row[k - 1] for row, k in zip(table, ks, strict=True))

    every = product(range(1, top_k + 1), repeat=layers)
    assert cost(chosen) == pytest.approx(min(cost(ks) for ks in every if sum(ks) <= budget), abs=1e-9)


def test_lexi_runs_the_k_of_each_layer() -> None:
    assert calibrate("out=a.safetensors") == 0
    bound = engine().bind(build_policy("lexi", calibration="a.safetensors", mean_k=1.5))
    assert isinstance(bound, PerLayer)
    assert sorted(asdict(policy)["k"] for policy in bound.policies) == [1, 2]
    assert bound.name == "lexi"
