"""A model that thinks, through the whole run: vanilla and lynx on math_500, thoughts that end and thoughts that are
cut, and a run that is stopped and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lynx_exp.config import Config, GenerationConfig, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.run.interrupt import Interrupted
from lynx_exp.run.run_cells import open_engine, run_cells
from lynx_exp.tasks.antlr import install_antlr
from tests.run import thinker
from tests.run.lab import found
from tests.run.lane_kills import Killed, kept, kept_every, not_run_again
from tests.tasks import real

POLICIES = ({"name": "vanilla"}, {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2})
LIMIT = 24
"""Tokens of a response."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return thinker.save(tmp_path_factory.mktemp("thinker"))


@pytest.fixture(scope="module", autouse=True)
def antlr(tmp_path_factory) -> Iterator[None]:
    """The runtime that math-verify's scoring wants, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        install_antlr()
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rows = [row | {"problem": f"{row['problem']} ({n})"} for n in range(4) for row in real.minerva()]
    return real.write_rows(tmp_path_factory.mktemp("data") / "minerva_math500.jsonl", rows)


def cells(checkpoint: Path, data: Path, **task: Any) -> list[Config]:
    asked = {"apply_chat_template": True, "thinking": True, "num_fewshot": 0} | task
    generation = asked.pop("generation", GenerationConfig(temperature=1.0, max_gen_toks=LIMIT))
    return [
        Config(
            model=ModelConfig(kind="hub", id=str(checkpoint)),
            policy=dict(policy),
            task=TaskConfig(
                name="math_500", subtasks=["minerva_math500"], data=str(data), generation=generation, **asked
            ),
            tracker=TrackerConfig(),
            batch_size=3,
            waves=1,
            device="cpu",
            results="results",
        )
        for policy in POLICIES
    ]


def run(configs: list[Config], folder: Path, *, stop_after: int | None = None) -> Any:
    def stopping(config: Config) -> Any:
        engine = open_engine(config)
        whole = engine.run_jobs

        def until(jobs, **more):
            for number, lane in enumerate(whole(jobs, **more)):
                if number == stop_after:
                    raise KeyboardInterrupt
                yield lane

        engine.run_jobs = until  # type: ignore[method-assign]
        return engine

    folder.mkdir(exist_ok=True)
    with chdir(folder):
        return run_cells(configs, console=Console(file=StringIO(), width=200), open_engine=stopping)


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    (path,) = folder.rglob(f"*{name}*/responses.parquet")
    return pq.read_table(path).to_pylist()


def test_thoughts_are_told_from_answers_and_a_stopped_run_goes_on_to_the_same_bytes(checkpoint, data, tmp_path):
    configs = cells(checkpoint, data)
    report = run(configs, tmp_path / "whole")
    assert [outcome.state for outcome in report.outcomes] == ["done", "done"], report.outcomes
    words = thinker.tokenizer()
    marker = words.get_vocab()[thinker.MARKER]
    for name in ("vanilla", "lynx"):
        rows = [row for row in table(tmp_path / "whole", name) if not row["filler"]]
        assert len(rows) == 12 and {row["thought"] for row in rows} >= {"closed", "cut"}
        for row in rows:
            tokens = row["token_ids"]
            closed = marker in tokens
            last = max((at for at, token in enumerate(tokens) if token == marker), default=-1)
            cut = not closed and row["finish_reason"] == "length"
            assert row["thought"] == ("closed" if closed else "cut" if cut else "none")
            assert row["thought_tokens"] == (last + 1 if closed else len(tokens) if cut else 0)
            said = words.decode(tokens[last + 1 :], skip_special_tokens=True).lstrip()
            assert row["response"] == said.split("Problem:")[0]
    with pytest.raises(Interrupted):
        run(configs, tmp_path / "stopped", stop_after=3)
    assert not list((tmp_path / "stopped").rglob("DONE"))
    run(configs, tmp_path / "stopped")
    assert found(tmp_path / "stopped") == found(tmp_path / "whole")


@pytest.mark.parametrize("behind", [5, 19])
def test_thoughts_that_were_drawn_in_part_are_drawn_on(checkpoint, data, tmp_path, behind):
    """Killed within lanes: before and behind the ends of thoughts."""
    configs = cells(checkpoint, data)
    run(configs, tmp_path / "whole")
    with kept_every(2, killed_behind=behind), pytest.raises(Killed):
        run(configs, tmp_path / "killed")
    assert kept(tmp_path / "killed")
    run(configs, tmp_path / "killed")
    assert not_run_again(tmp_path / "killed") > 0
    assert found(tmp_path / "killed") == found(tmp_path / "whole")


def test_thinking_is_switched_off_by_the_template(checkpoint, data, tmp_path):
    from lynx_exp.run.load_tasks import tasks_of
    from lynx_exp.tasks.load_task import load_task

    on, off = (tasks_of(cells(checkpoint, data, thinking=flag)[0], load_task, 2)[0] for flag in (True, False))
    assert on.requests[0].prompt.endswith("<|im_start|>assistant\n")
    assert off.requests[0].prompt.endswith("<think>\n\n</think>\n\n")
    assert on.requests[0].think_end.opened and off.requests[0].think_end is None
    kept = tasks_of(cells(checkpoint, data, thinking=False, think_end="auto")[0], load_task, 2)[0]
    assert not kept.requests[0].think_end.opened


@pytest.mark.parametrize(
    ("template", "task", "message"),
    [
        ("{{ messages[0].content }}", {}, r"^task\.thinking=true: the chat template of .* has no flag"),
        (thinker.TEMPLATE, {"think_end": "99999"}, r"^task\.think_end=99999: no token of the tokenizer, whose last"),
        (thinker.TEMPLATE.replace(thinker.MARKER, ""), {"think_end": "auto", "thinking": None, "cut": True}, "auto"),
    ],
)
def test_bad_input_is_one_line_before_a_model_loads(template, task, message, data, tmp_path):
    folder, task = thinker.save(tmp_path / "model", template), dict(task)
    if task.pop("cut", False):
        import json

        path = folder / "tokenizer.json"
        held = json.loads(path.read_text())
        held["added_tokens"] = [each for each in held["added_tokens"] if "think" not in each["content"]]
        path.write_text(json.dumps(held))
        message = r"^task\.think_end=auto: neither the added tokens nor"
    (folder / "model.safetensors").unlink()

    def never(config: Config) -> Any:
        raise AssertionError("loaded")

    with chdir(tmp_path), pytest.raises(ValueError, match=message) as caught:
        run_cells(cells(folder, data, **task), console=Console(file=StringIO()), open_engine=never)
    assert "\n" not in str(caught.value)


def asked(checkpoint: Path, data: Path, **more: Any):
    from lynx_exp.run.load_tasks import tasks_of
    from lynx_exp.tasks.load_task import load_task

    config = cells(checkpoint, data, generation=GenerationConfig(source="model", **more))[0]
    return tasks_of(config, load_task, 2)[0].requests[0]


def test_sampling_is_the_models_own_where_asked_and_what_is_given_comes_first(checkpoint, data, tmp_path):
    own = asked(checkpoint, data)
    assert (own.temperature, own.top_p, own.top_k) == (0.9, 0.95, 50)
    warm = asked(checkpoint, data, temperature=0.5, max_gen_toks=9)
    assert (warm.temperature, warm.top_p, warm.max_new_tokens) == (0.5, 0.95, 9)
    with pytest.raises(ValueError, match=r"^task\.generation=model: model\.id=.* has no generation_config\.json that"):
        asked(thinker.save(tmp_path / "a", generation=None), data)
    with pytest.raises(ValueError, match=r"^generation_config\.json: min_p=0\.1: not followed where tokens are drawn"):
        asked(thinker.save(tmp_path / "b", generation={"do_sample": True, "min_p": 0.1}), data)
    greedy = asked(thinker.save(tmp_path / "c", generation={"do_sample": False}), data)
    assert greedy.temperature == 0


def test_two_models_are_asked_each_by_its_own_tokens_and_settings(checkpoint, data, tmp_path):
    from lynx_exp.run.prepare_cells import prepare_cells
    from lynx_exp.tasks.load_task import load_task

    other = thinker.save(tmp_path / "cold", generation={"do_sample": True, "temperature": 0.25})
    generation = GenerationConfig(source="model", max_gen_toks=LIMIT)
    configs = [cells(each, data, generation=generation, apply_chat_template=False, thinking=None)[0]
               for each in (checkpoint, other)]  # fmt: skip
    prepared = prepare_cells(configs, load_task)
    assert [cell.tasks[0].requests[0].temperature for cell in prepared] == [0.9, 0.25]


def test_one_word_for_the_node_names_whose_sampling_counts():
    from lynx_exp.run.sweeper.raw_arguments import with_open_fields

    assert with_open_fields(["task.generation=model", "task.generation=task,model", "task.generation.top_k=3"]) == [
        "task.generation.source=model",
        "task.generation.source=task,model",
        "task.generation.top_k=3",
    ]


def test_lm_evals_command_takes_the_marker_as_its_own_models_do(checkpoint):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lynx_exp.lm_eval_model import LynxLM

    texts = ["What is 2+2?", "Name a tree.", "Halve 9."]
    kwargs = {"until": ["Problem:"], "max_gen_toks": 16, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, dict(kwargs)), at) for at, text in enumerate(texts)]
    number = thinker.tokenizer().get_vocab()[thinker.MARKER]
    for marker in (thinker.MARKER, number):
        own = LynxLM(str(checkpoint), think_end_token=marker, dtype="float32", decode_batch=1)
        theirs = HFLM(pretrained=str(checkpoint), think_end_token=marker, dtype="float32", batch_size=1, device="cpu")
        said = own.generate_until(requests, disable_tqdm=True)
        assert said == theirs.generate_until(requests, disable_tqdm=True)
        assert not any(thinker.MARKER in text for text in said)
    thinking = LynxLM(str(checkpoint), enable_thinking=True, dtype="float32", decode_batch=1)
    with pytest.raises(ValueError, match=r"^enable_thinking=True: requests asks for likelihoods"):
        thinking.loglikelihood([Instance("loglikelihood", {}, ("a", " b"), 0)])
