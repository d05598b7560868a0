"""lm-eval's own task definitions on local files: any form, no network, no cache, and errors that say what is wrong."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.document_files import ENDINGS, read_rows
from tests.tasks import real

DATA_TASKS = [name for name in real.ROWS if name != "minerva_math_algebra"]  # which has tests of its own


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return real.write(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_more):
        raise AssertionError("a task with local documents opened a socket")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def settings_of(data: Path, **more) -> TaskSettings:
    return TaskSettings(data=str(data), **more)


@pytest.mark.parametrize("name", DATA_TASKS)
def test_every_task_runs_without_network(name, folder, no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    task = load_task(name, settings=settings_of(folder))
    docs = {request.doc_id for request in task.requests}
    assert docs == set(range(len(real.ROWS[name]())))
    assert task.revision is None and list(tmp_path.iterdir()) == [], "nothing is cached"
    if task.kind == "choice":
        scores = task.score([(-float(number), False) for number in range(len(task.requests))])
        assert len(scores.samples) == len(docs)


def test_prompts_are_those_of_the_definition(folder):
    few = load_task("gsm8k", limit=2, settings=settings_of(folder)).requests[0]
    assert few.prompt.count("Question:") == 6 and few.prompt.endswith("\nAnswer:")
    assert few.until == ("Question:", "</s>", "<|im_end|>") and few.max_new_tokens == 256
    cot = load_task("gsm8k_cot", limit=2, settings=settings_of(folder)).requests[0]
    assert cot.prompt.count("Q:") == 9 and "There are 15 trees in the grove." in cot.prompt
    code = load_task("humaneval", limit=1, settings=settings_of(folder)).requests[0]
    assert code.prompt == real.humaneval()[0]["prompt"].rstrip() or code.prompt == real.humaneval()[0]["prompt"]
    assert code.max_new_tokens == 1024
    german = load_task("wmt16-en-de", limit=1, settings=settings_of(folder)).requests[0]
    assert german.prompt == "English phrase: The train leaves at nine.\nGerman phrase:" and german.until == ("\n",)
    chosen = load_task("truthfulqa_mc2", limit=1, settings=settings_of(folder)).requests
    assert [request.continuation for request in chosen] == [
        " It gets dirty",
        " It picks up dust.",
        " It turns to stone",
    ]
    asked = load_task("mbpp", limit=1, settings=settings_of(folder)).requests[0]
    assert asked.prompt.count("[BEGIN]") == 4 and asked.until == ("[DONE]",)


def test_examples_never_show_the_answer_that_is_asked(tmp_path):
    """One file for documents and examples: none stands before itself."""
    file = real.write_rows(tmp_path / "all.jsonl", real.gsm8k()[:7])
    for request in load_task("gsm8k", settings=settings_of(file)).requests:
        questions = request.prompt.split("Question: ")[1:]
        assert len(questions) == 6
        asked = questions[-1].removesuffix("\nAnswer:")
        assert not any(example.startswith(asked) for example in questions[:-1])


def test_examples_come_from_the_training_file_where_there_is_one(folder):
    train = {row["question"] for row in real.gsm8k()[-20:]}
    request = load_task("gsm8k", limit=3, settings=settings_of(folder)).requests[0]
    shown = [part.partition("\nAnswer:")[0] for part in request.prompt.split("Question: ")[1:-1]]
    assert set(shown) <= train


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", ["gsm8k{}", "gsm8k-test{}", "gsm8k/test{}", "test{}"])
def test_every_form_of_file_gives_the_same_requests(ending, place, tmp_path, folder):
    rows = real.gsm8k()[:6]
    path = tmp_path / place.format(ending)
    path.parent.mkdir(exist_ok=True)
    if ending == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        text = json.dumps(rows) if ending.startswith(".json") and "jsonl" not in ending else ""
        text = text or "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    task = load_task("gsm8k", settings=settings_of(tmp_path))
    alone = load_task("gsm8k", settings=settings_of(path))
    plain = load_task("gsm8k", settings=settings_of(real.write_rows(tmp_path / "plain.jsonl", rows)))
    assert task.requests == alone.requests == plain.requests
    assert task.data_digest == alone.data_digest == plain.data_digest, "wherever the documents lie"


def test_the_digest_follows_documents_and_prompts(tmp_path):
    rows = real.gsm8k()[:8]
    file = real.write_rows(tmp_path / "a.jsonl", rows)
    base = load_task("gsm8k", limit=4, settings=settings_of(file)).data_digest
    other = real.write_rows(tmp_path / "b.jsonl", [*rows[:3], {**rows[3], "answer": "#### 1"}, *rows[4:]])
    digests = [
        base,
        load_task("gsm8k", limit=4, settings=settings_of(other)).data_digest,
        load_task("gsm8k", limit=4, settings=settings_of(file, num_fewshot=2)).data_digest,
        load_task("gsm8k", limit=4, settings=settings_of(file, fewshot_seed=5)).data_digest,
        load_task("gsm8k", limit=4, settings=settings_of(file, system_instruction="Be brief.")).data_digest,
        load_task("gsm8k", limit=4, settings=settings_of(file, temperature=0.5)).data_digest,
        load_task("gsm8k", limit=4, settings=settings_of(file, max_gen_toks=9)).data_digest,
        load_task("gsm8k", limit=4, settings=settings_of(file, until=("\n",))).data_digest,
        load_task("gsm8k", limit=4, settings=settings_of(file, repeats=2)).data_digest,
        load_task("gsm8k_cot", limit=4, settings=settings_of(file)).data_digest,
    ]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"question": "?", "answer": "1"}\n{"question": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", "", "must hold at least one document"),
        ("a.json", "[1, 2]", "must hold at least one document, each an object"),
        ("a.jsonl.gz", "not gzip", r"a\.jsonl\.gz cannot be read: Not a gzipped file"),
        ("a.parquet", "not parquet", r"a\.parquet"),
        ("a.jsonl", '{"text": "?", "answer": "1"}\n', "lack a field that gsm8k asks for: 'question' is undefined"),
    ],
)
def test_bad_files(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_task("gsm8k", settings=settings_of(tmp_path / name, num_fewshot=0 if "undefined" in message else None))
    assert str(caught.value).startswith("task.data") and "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder; give hub, a file \(\.jsonl"):
        load_task("gsm8k", settings=settings_of(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"has no documents for gsm8k; looked in the folder for gsm8k/test\{\.jsonl,"):
        load_task("gsm8k", settings=settings_of(tmp_path))


def test_too_few_documents_to_take_examples_from(tmp_path):
    file = real.write_rows(tmp_path / "a.jsonl", real.gsm8k()[:3])
    with pytest.raises(ValueError, match=r"task\.num_fewshot=5: task\.data=.* has too few documents to take gsm8k's"):
        load_task("gsm8k", settings=settings_of(file))


def test_examples_that_a_task_does_not_take(folder):
    with pytest.raises(ValueError, match=r"task\.num_fewshot=5: humaneval is defined without examples; leave it null"):
        load_task("humaneval", settings=settings_of(folder, num_fewshot=5))


def test_the_hub_out_of_reach_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, dataset in (("gsm8k", "openai/gsm8k main"), ("wmt16-en-de", "wmt/wmt16 de-en")):
        with pytest.raises(ValueError) as caught:
            load_task(name, limit=3)
        assert str(caught.value) == (
            f"task.data=hub: {dataset} is not in the local cache and cannot be had from the hub; run "
            "`lynx-prepare prefetch` with the same arguments where there is network, or give task.data=FILE_OR_FOLDER"
        )


def test_a_users_own_definition(tmp_path, folder):
    file = tmp_path / "riddles.yaml"
    file.write_text(
        "task: riddles\ndataset_path: nobody/riddles\ntest_split: test\noutput_type: generate_until\n"
        'doc_to_text: "{{riddle}}"\ndoc_to_target: answer\ngeneration_kwargs: {until: ["."], max_gen_toks: 5}\n'
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    )
    rows = real.write_rows(tmp_path / "rows.jsonl", [{"riddle": "What has keys?", "answer": "a piano"}])
    task = load_task(str(file), settings=settings_of(rows))
    assert (task.name, task.requests[0].prompt, task.requests[0].max_new_tokens) == ("riddles", "What has keys?", 5)
    assert task.score(["a piano"]).headline.value == 1.0


def test_any_task_of_lm_evals_is_found_by_name(tmp_path):
    rows = [{"passage": "It rains.", "question": "is it dry", "label": 0}]
    file = real.write_rows(tmp_path / "boolq.jsonl", rows)
    task = load_task("boolq", settings=settings_of(file))
    assert [request.continuation for request in task.requests] == [" no", " yes"]


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none()), min_size=1))
def test_rows_survive_their_file(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    lines = folder / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = folder / "rows.json.gz"
    whole.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert read_rows(lines) == read_rows(whole) == rows


def test_programs_run_in_the_sandbox_whatever_lm_eval_has_imported(folder, monkeypatch):
    """lm-eval keeps the modules of definitions, and with them whichever `code_eval` they were imported with."""
    import evaluate
    from lm_eval.tasks._yaml_loader import load_yaml

    from lynx_exp.tasks.code import forget_task_modules
    from lynx_exp.tasks.definition import find_definition

    class Unconfined:
        def compute(self, **_):
            return {"pass@1": -1.0}, {}

    monkeypatch.setattr(evaluate, "load", lambda *_: Unconfined())
    before = load_yaml(find_definition("humaneval"))
    task = load_task("humaneval", limit=3, settings=settings_of(folder, fewshot_seed=77))
    scores = task.score([row["canonical_solution"] for row in real.humaneval()[:3]])
    assert [sample.score for sample in scores.samples] == [1.0] * 3
    assert {sample.verdict for sample in scores.samples} == {"passed"}
    after = load_yaml(find_definition("humaneval"))
    forget_task_modules()
    assert after["metric_list"][0]["metric"] is before["metric_list"][0]["metric"], "lm-eval alone has its own again"
