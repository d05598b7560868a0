"""Whatever is typed, and whatever lies in a file: no stack trace, no hang, an exit code that is documented, nothing
written outside the results. A small profile here; `make fuzz` runs the same for longer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp import cli
from lynx_exp.models import BUNDLED
from lynx_exp.prepare import command_line as prepare
from lynx_exp.results import main as results

MANY = int(os.environ.get("FUZZ_EXAMPLES", "300"))
HANG_S = 60
"""Far above what any case takes: a hang, not a benchmark."""


class Hang(BaseException):
    """Not an Exception, so that nothing takes it for an error of the input."""


@contextmanager
def elsewhere() -> Iterator[Path]:
    """An empty working directory, and an alarm."""

    def ring(*_: object) -> None:
        raise Hang(f"more than {HANG_S} s")

    before, handler = Path.cwd(), signal.signal(signal.SIGALRM, ring)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        signal.alarm(HANG_S)
        try:
            yield Path(folder)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)
            os.chdir(before)


def held(run: Callable[[list[str]], int | None], arguments: list[str], given: tuple[str, ...] = ()) -> None:
    """Run it: whatever it raises is a fault, but an exit with a documented code."""
    try:
        code = run(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) or stop.code is None else -1
    assert code in (None, 0, 1, 2), arguments
    left = sorted(path.name for path in Path().iterdir())
    assert set(left) <= {"results", *given}, left


def profile(examples: int) -> settings:
    return settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


# what is typed

NUMBERS = ["0", "-1", "1", "3", "2.5", "1e308", "-1e308", "1e-320", "inf", "-inf", "nan", str(2**63), str(2**70), "0x1"]
TEXTS = ["", "x", "''", '"\\n"', "null", "true", "???", "${seed}", "${a.b}", "[]", "[1,2]", "['']", "{}", "{a: {b: 1}}"]
TEXTS += [
    "../x",
    "/",
    "a b",
    "\u00e9\u2028",
    "1:2",
    "0,4:8",
    "<K>",
    "%",
    "*",
    "\\",
    "=",
    "@",
    "a,b",
    "range(1,3)",
    "[[",
]
FIELDS = ["model", "model.id", "model.seed", "model.config", "model.kind", "model.device_map", "policy", "policy.name"]
FIELDS += ["policy.alpha", "policy.k", "policy.match_active", "policy.tolerance", "policy.min_batch", "policy.seed"]
FIELDS += ["task", "task.subtasks", "task.data", "task.num_fewshot", "task.weights", "task.generation.until"]
FIELDS += ["task.generation.temperature", "task.generation.max_gen_toks", "task.repeats", "task.fewshot_seed"]
FIELDS += [
    "phases",
    "layers",
    "batch_size",
    "batching",
    "waves",
    "limit",
    "seed",
    "backend",
    "dtype",
    "device",
    "kernel",
    "steps",
]
FIELDS += ["threads", "pack.max_rows", "pack.memory_gib", "measure.latency", "measure.context", "measure.new_tokens"]
FIELDS += [
    "kernel",
    "measure.precision",
    "tracker.wait_s",
    "study_name",
    "first",
    "then",
    "hydra.run.dir",
    "hydra.sweeper.cells",
]
FIELDS += ["hydra.sweeper.max_cells", "study", "nonsense", "a.b.c"]
VALUES = st.one_of(st.sampled_from(NUMBERS + TEXTS), st.text(max_size=6).filter(lambda text: "\0" not in text))
OVERRIDES = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "", "", "+", "++", "~"]), st.sampled_from(FIELDS), VALUES
)
CHOICES = ["policy=lynx", "policy=coverage", "policy=top_k", "policy=random_keep", "model=random", "task=custom", "-m"]
TYPED = st.lists(st.one_of(st.sampled_from(CHOICES), OVERRIDES), min_size=1, max_size=4)


def typed(words: list[str]) -> None:
    with elsewhere():
        held(cli.run, [*words, "plan=true"])


@profile(15)
@given(TYPED)
def test_overrides(words):
    typed(words)


@pytest.mark.slow
@profile(MANY)
@given(TYPED)
def test_many_overrides(words):
    typed(words)


PREPARE = st.builds(
    lambda verb, words: [verb, *words],
    st.sampled_from(["train", "calibrate", "prefetch"]),
    st.lists(st.one_of(OVERRIDES, st.sampled_from(["steps=x", "+foo=1", "data=none.jsonl", "top_k=0"])), max_size=3),
)


_NOWHERE = dict.fromkeys(("train", "calibrate"), ["out=/dev/null/x"])
"""Whatever is well typed ends there instead of in hours of training."""


def prepared(words: list[str]) -> None:
    verb, *rest = words
    with elsewhere():
        held(prepare.run, [verb, *rest, *_NOWHERE.get(verb, ["--dry-run"])])


@profile(10)
@given(PREPARE)
def test_prepare(words):
    prepared(words)


@pytest.mark.slow
@profile(MANY)
@given(PREPARE)
def test_prepare_many(words):
    prepared(words)


VERBS = ["table", "recommend", "pareto", "figures", "status", "validate", "diff", "gc", "report", "rescore", "export"]
VERBS += ["sync", "import", "dashboard", "nonsense"]
FLAGS = [
    "--margin",
    "--out",
    "--csv",
    "--once",
    "--json",
    "--paper",
    "--format",
    "--to",
    "--offline",
    "--project",
    "--x",
]
ASKED = st.builds(
    lambda verb, words: [verb, *words],
    st.sampled_from(VERBS),
    st.lists(
        st.one_of(st.sampled_from([*FLAGS, "results", "none"]), VALUES.filter(lambda word: "/" not in word)), max_size=4
    ),
)
"""Of folders here: what lies on the rest of the machine, and how much, is not the test's."""


def asked(words: list[str]) -> None:
    with elsewhere():
        Path("results").mkdir()
        held(results.main, words)


@profile(25)
@given(ASKED)
def test_results(words):
    asked(words)


@pytest.mark.slow
@profile(MANY)
@given(ASKED)
def test_results_many(words):
    asked(words)


# what lies in files

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(["question", "answer"]), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=8,
)
LINES = st.lists(JSON, max_size=8).map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode())
CONTENT = st.one_of(st.binary(max_size=60), LINES, JSON.map(lambda value: json.dumps(value).encode()))
NAMES = ["gsm8k.jsonl", "gsm8k.json", "gsm8k.jsonl.gz", "gsm8k.parquet", "gsm8k/test.jsonl"]


def data(name: str, content: bytes) -> None:
    with elsewhere():
        path = Path("data", name)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        words = ["task=gsm8k", "task.data=data", "task.num_fewshot=0", "truncate=left", "plan=true"]
        held(cli.run, words, ("data",))


@profile(12)
@given(st.sampled_from(NAMES), CONTENT)
def test_data(name, content):
    data(name, content)


@pytest.mark.slow
@profile(MANY)
@given(st.sampled_from(NAMES), CONTENT)
def test_data_many(name, content):
    data(name, content)


LINES_OF_YAML = """\
task: mine
task: [a]
task: ../x
- a
a: [
!unknown x
include: none.yaml
include: t.yaml
doc_to_text: !function none.f
doc_to_text: '{{question'
doc_to_text: '{{question}}'
doc_to_text: 3
output_type: generate_until
output_type: choices
test_split: test
generation_kwargs: 3
x: 1
dataset_path: json
metric_list: [{metric: nobody}]
metric_list: 3
filter_list: x
a: *b
group: g
doc_to_target: '{{answer}}'
generation_kwargs: {until: [''], max_gen_toks: 99999999}
repeats: -1
: :
""".splitlines()
YAML = st.one_of(st.lists(st.sampled_from(LINES_OF_YAML), max_size=8).map("\n".join), st.text(max_size=20))


def definition(text: str) -> None:
    with elsewhere():
        Path("t.yaml").write_text(text, encoding="utf-8", errors="replace")
        Path("data").mkdir()
        Path("data", "mine.jsonl").write_text('{"question": "q", "answer": "a"}\n')
        words = ["task=custom", "task.subtasks=[t.yaml]", "task.data=data", "truncate=left", "plan=true"]
        held(cli.run, words, ("data", "t.yaml"))


@profile(12)
@given(YAML)
def test_definitions(text):
    definition(text)


@pytest.mark.slow
@profile(MANY)
@given(YAML)
def test_definitions_many(text):
    definition(text)


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "X", 3, None]),
        "shape": st.one_of(st.lists(st.integers(-2, 2**40), max_size=3), st.none()),
        "data_offsets": st.one_of(st.lists(st.integers(-1, 2**62), max_size=3), st.text(max_size=2)),
    },
)
HEADERS = st.one_of(
    JSON, st.dictionaries(st.sampled_from(["lm_head.weight", "model.norm.weight", "__metadata__"]), TENSOR, max_size=3)
)
LENGTHS = st.one_of(st.none(), st.sampled_from([0, 1, 2**20, 2**63, 2**64 - 1]))


def weights(header: object, length: int | None, rest: bytes) -> None:
    text = json.dumps(header).encode()
    content = (len(text) if length is None else length).to_bytes(8, "little") + text + rest
    with elsewhere():
        Path("model").mkdir()
        for path in BUNDLED["lynx_tiny"].glob("*.json"):
            shutil.copy(path, "model")
        Path("model", "model.safetensors").write_bytes(content)
        held(cli.run, ["model=hub", "model.id=model", "limit=1", "threads=1"], ("model",))


@profile(6)
@given(HEADERS, LENGTHS, st.binary(max_size=16))
def test_weights(header, length, rest):
    weights(header, length, rest)


@pytest.mark.slow
@profile(MANY)
@given(HEADERS, LENGTHS, st.binary(max_size=16))
def test_weights_many(header, length, rest):
    weights(header, length, rest)
