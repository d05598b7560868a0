"""weights=affine: what is measured, that exactly the changed rows are mapped by it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lynx_exp.engine.decoding.sections import Act, Sections
from lynx_exp.models import Attachment, Rows, bind, find_routers
from lynx_exp.models.align_outputs import AlignOutputs, changed
from lynx_exp.models.tiny import tiny_model
from lynx_exp.prepare.align import measure
from lynx_exp.prepare.single_experts import find_experts
from lynx_exp.routing import Policy, build_policy
from lynx_exp.routing.alignment import EPS, TABLES, Alignment, policy_digest
from lynx_exp.vllm_plugin.plugin_settings import Settings
from tests.prepare.test_calibrate import calibrate, cell

ROWS, LENGTH = 8, 12
IDS = torch.randint(0, 128, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS, dtype=torch.bool)
AFFINE = build_policy("xshare", budget=4, weights="affine")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3_moe")


def measured(model: Any, policy: Policy = AFFINE) -> Alignment:
    routers = find_routers(model)
    experts = find_experts(model, routers)
    alignment = measure(model, routers, experts, policy, [(IDS, REAL)], "texts", {"data": "x"}, lambda: None)
    alignment.save(alignment.file())
    return alignment


def rows_of_positions() -> Rows:
    """As `measure` has them: the tokens at one position are a lane."""
    ones = torch.ones(ROWS * LENGTH, dtype=torch.bool)
    place = torch.arange(LENGTH)
    row = torch.arange(ROWS).repeat_interleave(LENGTH) << 32
    return Rows(decode=ones, live=ones, lane=place.repeat(ROWS), num_lanes=LENGTH, key=place, row=row)


@torch.inference_mode()
def outputs(model: Any, policy: Policy | None) -> tuple[Tensor, Tensor]:
    """(what the first layer's experts hand on `[T, D]`, rows whose experts changed there)."""
    made: list[Tensor] = []
    routers = find_routers(model)
    attachment = Attachment(routers, policy)
    attachment.rows, attachment.record = rows_of_positions(), []
    with attachment:
        remove = (
            routers[0]
            .parent.experts.register_forward_hook(  # type: ignore[union-attr, operator]
                lambda _module, _given, output: made.append(output.reshape(ROWS * LENGTH, -1))
            )
            .remove
        )
        model.base_model(input_ids=IDS, use_cache=False)
        remove()
    experts, _, own = attachment.record[0]
    return made[0], (experts != own).any(-1)


def test_changed_rows_have_vanillas_mean_and_deviation_and_the_others_their_bits(model: Any) -> None:
    alignment = measured(model)
    plain, changed_T = outputs(model, replace(AFFINE, weights="renormalize"))
    mapped, _ = outputs(model, AFFINE)
    vanilla, _ = outputs(model, None)
    assert 0 < changed_T.sum() < len(changed_T)
    assert torch.equal(mapped[~changed_T], plain[~changed_T]) and torch.equal(plain[~changed_T], vanilla[~changed_T])
    there, before = vanilla[changed_T].double(), plain[changed_T].double()
    deviation = there.std(0, correction=0)
    by_hand = (before - before.mean(0)) / (before.std(0, correction=0) + EPS) * deviation + there.mean(0)
    assert torch.allclose(mapped[changed_T].double(), by_hand, rtol=1e-3, atol=1e-5)
    assert torch.allclose(mapped[changed_T].double().mean(0), there.mean(0), atol=1e-5)
    assert [table.shape for table in alignment.tables.values()] == [(2, 64)] * 4
    assert int(alignment.provenance["changed_rows"].split(",")[0]) == changed_T.sum()


def test_a_policy_that_changes_nothing_is_vanilla_bit_for_bit(model: Any) -> None:
    nothing = build_policy("no_drop", weights="affine")
    alignment = measured(model, nothing)
    assert alignment.provenance["changed_rows"] == "0,0"
    assert torch.equal(outputs(model, nothing)[0], outputs(model, None)[0])


def test_layers_have_vanillas_before_them(model: Any) -> None:
    """The second layer's vanilla statistics are those of a plain pass."""
    made: list[Tensor] = []
    routers, alignment = find_routers(model), measured(model, build_policy("top_k", k=1, weights="affine"))
    experts = routers[1].parent.experts
    remove = experts.register_forward_hook(lambda _m, _given, output: made.append(output)).remove  # type: ignore[union-attr, operator]
    with torch.inference_mode():
        model.base_model(input_ids=IDS, use_cache=False)
    remove()
    mean = made[0].reshape(ROWS * LENGTH, -1).double().mean(0)
    assert torch.allclose(alignment.tables["vanilla_mean"][1].double(), mean, atol=1e-6)


@torch.inference_mode()
def test_in_a_pack_only_its_own_rows_are_mapped(model: Any) -> None:
    """Rows of two policies, one after the other in turns, and a dead one: each as if it were alone with its own."""
    routers = find_routers(model)
    plain = build_policy("top_k", k=1)
    aligned_policy = build_policy("top_k", k=1, weights="affine")
    measured(model, aligned_policy)
    ids = IDS[:, :1]

    def hidden(*acts: tuple[int, Policy]) -> Tensor:
        of_row = [Act(policy=bind(policy, routers)) for _, policy in acts]
        sections = Sections(routers, list(dict.fromkeys(of_row)), torch.device("cpu"))
        numbers = [list(dict.fromkeys(of_row)).index(act) for act in of_row]
        sections.arrange(numbers, numbers, range(len(acts)), dead=1)
        sections.begin(np.zeros(max(numbers) + 1, np.int64))
        taken = torch.cat([ids[[row for row, _ in acts]], ids[-1:]])
        with sections:
            return model.base_model(input_ids=taken, use_cache=False).last_hidden_state[: len(acts), 0]

    together = hidden((0, plain), (1, aligned_policy), (2, plain), (3, aligned_policy))
    assert torch.allclose(together[[0, 2]], hidden((0, plain), (2, plain)), atol=1e-5)
    assert torch.allclose(together[[1, 3]], hidden((1, aligned_policy), (3, aligned_policy)), atol=1e-5)
    assert not torch.allclose(together[[1, 3]], hidden((1, plain), (3, plain)), atol=1e-3)


def test_refusals_name_the_hashes(model: Any, folder: Path) -> None:
    routers = find_routers(model)
    with pytest.raises(ValueError, match=r"^xshare: weights=affine: calibrations/ has no alignment .* \(hash \w{12}\)"):
        bind(AFFINE, routers)
    alignment = measured(model)
    assert bind(AFFINE, routers) is not AFFINE
    with pytest.raises(ValueError, match="has no alignment for this policy with these parameters"):
        bind(build_policy("xshare", budget=5, weights="affine"), routers)
    with pytest.raises(
        ValueError, match=r"made for another model \(its routers and experts hash to [0-9a-f]{12}, this model's to"
    ):
        bind(AFFINE, find_routers(tiny_model("qwen3_moe", seed=1)))
    moved = {name: table + (name == "policy_mean") for name, table in alignment.tables.items()}
    about = alignment.file().read_bytes()
    replace(alignment, tables=moved).save(folder / "moved.safetensors")
    size = int.from_bytes(about[:8], "little") + 8
    alignment.file().write_bytes(about[:size] + (folder / "moved.safetensors").read_bytes()[size:])
    with pytest.raises(ValueError, match="its tables do not hash to what it says of them"):
        bind(AFFINE, routers)
    alignment.file().write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        bind(AFFINE, routers)


def test_of_several_corpora_none_is_chosen(model: Any, folder: Path) -> None:
    """Nor of several sizes of batches: which is meant, only the user can say."""
    routers, alignment = find_routers(model), measured(model)
    for more in ({"data_sha256": "0" * 64}, {"batch_size": "4"}):
        other = replace(alignment, provenance=alignment.provenance | more)
        assert other.file() != alignment.file()
        other.save(other.file())
        with pytest.raises(ValueError, match=r"^xshare: weights=affine: .* is meant\? Move all but one out"):
            bind(AFFINE, routers)
        other.file().unlink()
    alignment.file().rename(
        alignment.file(folder / "calibrations").with_name(
            f"{alignment.policy[:12]}-{alignment.fingerprint[:12]}.aligned.safetensors"
        )
    )
    assert bind(AFFINE, routers) is not AFFINE, "as files were named before their corpus was in it"


def test_a_model_with_the_same_routers_and_other_experts_is_another(folder: Path) -> None:
    """As a fine-tune that leaves the routers alone."""
    model = tiny_model("qwen3_moe")
    measured(model)
    bind(AFFINE, find_routers(model))
    with torch.no_grad():
        model.model.layers[-1].mlp.experts.down_proj.mul_(-3)
    with pytest.raises(ValueError, match="made for another model"):
        bind(AFFINE, find_routers(model))


def test_what_a_calibration_holds_is_part_of_the_policy(folder: Path) -> None:
    digests = set()
    for content in ("one", "two"):
        (folder / "facts.st").write_text(content)
        digests.add(policy_digest(build_policy("sere", calibration=str(folder / "facts.st"), weights="affine")))
    digests.add(policy_digest(build_policy("sere", weights="affine")))
    assert len(digests) == 3


def test_what_is_saved_is_read_and_again_the_same_bytes(model: Any) -> None:
    alignment = measured(model)
    bytes_ = alignment.file().read_bytes()
    read = Alignment.load(alignment.file())
    assert all(torch.equal(read.tables[name], alignment.tables[name]) for name in TABLES)
    assert (read.policy, read.corpus, read.provenance) == (alignment.policy, "texts", alignment.provenance)
    assert measured(model).file().read_bytes() == bytes_
    assert measured(model, replace(AFFINE, weights="renormalize")).file().read_bytes() == bytes_
    assert read.provenance["policy"] == "xshare(budget=4)"


def test_experts_that_are_no_module_of_their_own_are_refused_by_name(model: Any) -> None:
    class Bare(torch.nn.Module):
        pass

    (router, *_) = find_routers(model)
    bare = [replace(router, parent=Bare())]
    measured(model)
    with pytest.raises(ValueError, match="^weights=affine: model.layers.0.mlp.gate: Bare has no module whose output"):
        AlignOutputs(bare, [bind(AFFINE, find_routers(model))])
    AlignOutputs(bare, [build_policy("top_k"), None])


def test_changed_rows_of_a_wider_policy(model: Any) -> None:
    """A row that runs more than K experts is changed; one that could and does not is not."""
    from tests.routing.laws import route
    from tests.routing.test_policies import RULE, one_lane

    before = route(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), RULE)
    after = build_policy("oea", k0=1, k_max=3)(before, one_lane(6), RULE)
    sets = [{*row} for row in after.experts.tolist()], [{*row} for row in before.experts.tolist()]
    assert changed(before, after).tolist() == [new != own for new, own in zip(*sets, strict=True)]


def test_the_command_makes_what_a_cell_takes_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    xshare = {"name": "xshare", "budget": 3, "weights": "affine"}
    with pytest.raises(ValueError, match="^policy xshare: weights=affine: calibrations/ has no alignment"):
        cell(xshare)
    assert calibrate("policy=xshare", "policy.budget=3") == 0
    assert "xshare(budget=3" in capsys.readouterr().out
    first, (file,) = cell(xshare), Path("calibrations").iterdir()
    assert calibrate("policy=xshare", "policy.budget=3", "model.seed=5") == 0
    assert cell(xshare).cell_id == first.cell_id, "another model's alignment lies beside it"
    assert calibrate("policy=xshare", "policy.budget=3") == 0
    assert cell(xshare).cell_id == first.cell_id and len([*Path("calibrations").iterdir()]) == 2
    capsys.readouterr()
    assert calibrate("policy=xshare", "policy.budget=3", "seed=1") == 0
    assert f"takes it once {file}, of other texts, is somewhere else" in capsys.readouterr().out
    with pytest.raises(ValueError, match=rf"^policy xshare: weights=affine: .*{file.name} \(data=mini, its texts"):
        cell(xshare)
    file.unlink()
    assert cell(xshare).cell_id != first.cell_id and cell(xshare).pair_id == first.pair_id
    with pytest.raises(ValueError, match="weights=affine: is measured for fixed parameters"):
        cell(xshare | {"match_active": 0.9})
    capsys.readouterr()
    assert calibrate("policy=xshare", "policy.budget=3", "out=here.safetensors") == 2
    assert "out=here.safetensors: what is measured of a policy lies in calibrations" in capsys.readouterr().err
    assert calibrate("policy=xshare", "policy.budget=30") == 2
    assert "xshare: budget=30: must lie in 2..4" in capsys.readouterr().err


def test_vllm_refuses_it_by_name() -> None:
    with pytest.raises(ValueError, match=r"^additional_config.lynx: xshare: weights=affine: .*backend=transformers$"):
        Settings.parse({"policy": "xshare", "weights": "affine"})
    assert Settings.parse({"policy": "xshare", "weights": "original"}).acting is not None
