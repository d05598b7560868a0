"""Solutions that differ from the published ones: written with NumPy, and problems of MBPP's form, right and wrong.

Each verdict is that of a plain process. Solutions and problems are this project's own; HumanEval's prompts and tests
come from its package.
"""

# ruff: noqa: E501 (programs in a line each are read more easily than in three)
from __future__ import annotations

import pytest

from lynx_exp.tasks.sandbox import open_sandbox
from lynx_exp.tasks.sandbox.program import Program
from tests.tasks.sandbox.conftest import PATIENT_S
from tests.tasks.sandbox.test_human_eval import as_code_eval, rows, with_entry_point
from tests.tasks.sandbox.test_values import in_a_plain_process

__all__ = ["rows"]

NUMPY = {
    5: "    out = np.full(max(2 * len(numbers) - 1, 0), delimeter)\n    out[::2] = numbers\n    return list(out)",
    8: "    return np.sum(numbers, dtype=int), np.prod(numbers, dtype=int)",
    9: "    return list(np.maximum.accumulate(np.array(numbers, dtype=int)))",
    34: "    return list(np.unique(l))",
    42: "    return [x for x in np.asarray(l, dtype=np.int64) + 1]",
    62: "    return list(np.polynomial.polynomial.polyder(xs).astype(int)) if len(xs) > 1 else []",
    107: "    own = np.array([k for k in range(1, n + 1) if str(k) == str(k)[::-1]])\n    return (own % 2 == 0).sum(), (own % 2 == 1).sum()",
    3: "    return np.any(np.cumsum(operations) < 0)",
    4: "    x = np.array(numbers)\n    return np.abs(x - x.mean()).mean()",
    21: "    x = np.array(numbers)\n    return list((x - x.min()) / np.ptp(x))",
    30: "    x = np.array(l, dtype=int)\n    return list(x[x > 0])",
    35: "    return np.max(l)",
    45: "    return np.float64(a) * h / 2",
    52: "    return (np.array(l) < t).all()",
    57: "    d = np.diff(l)\n    return (d >= 0).all() or (d <= 0).all()",
    58: "    return list(np.intersect1d(l1, l2).astype(int))",
    60: "    return np.arange(n + 1).sum()",
    85: "    x = np.array(lst)[1::2]\n    return x[x % 2 == 0].sum()",
    121: "    x = np.array(lst)[::2]\n    return x[x % 2 == 1].sum()",
    122: "    x = np.array(arr[:k])\n    return x[np.abs(x) < 100].sum()",
    133: "    return np.square(np.ceil(lst)).sum().astype(int)",
}  # fmt: skip
WRONG = {
    8: "    return np.sum(numbers, dtype=int), np.sum(numbers, dtype=int)",
    9: "    return np.maximum.accumulate(np.array(numbers, dtype=int))",
    34: "    return np.unique(l)",
    42: "    return list(np.array(l, dtype=np.int8) + np.int8(2))",
    45: "    return np.float32(a) * np.float32(h) / np.float32(3)",
    60: "    return np.arange(n).sum()",
}  # fmt: skip
"""Among them arrays where a list is asked for: `==` has no one truth, in a plain process either."""

FORM_OF_MBPP = {
    "a builtin's name": (
        "assert max([3, 8, 5], 2) == 8\nassert max([3, 8, 5], 1) == 3",
        "def max(xs, n):\n best = xs[0]\n for x in xs[:n]:\n  best = x if x > best else best\n return best",
        "def max(xs, n): return xs[0]",
    ),
    "a class": (
        "a = Account(5)\na.pay(3)\nassert a.left == 2\nassert a.history() == [3]",
        "class Account:\n def __init__(s, left): s.left = left; s.paid = []\n def pay(s, x): s.left -= x; s.paid.append(x)\n def history(s): return s.paid",
        "class Account:\n def __init__(s, left): s.left = left; s.paid = []\n def pay(s, x): s.left += x; s.paid.append(x)\n def history(s): return s.paid",
    ),
    "a list of objects": (
        "assert longest([Span(1, 5), Span(2, 9)]) == 7",
        "class Span:\n def __init__(s, a, b): s.a, s.b = a, b\ndef longest(spans): return max(s.b - s.a for s in spans)",
        "class Span:\n def __init__(s, a, b): s.a, s.b = a, b\ndef longest(spans): return min(s.b - s.a for s in spans)",
    ),
    "a counter": (
        "assert letters('banana') == {'b': 1, 'a': 3, 'n': 2}",
        "from collections import Counter\ndef letters(s): return Counter(s)",
        "from collections import Counter\ndef letters(s): return Counter(set(s))",
    ),
    "a default dict": (
        "assert by_length(['a', 'bb', 'c']) == {1: ['a', 'c'], 2: ['bb']}",
        "from collections import defaultdict\ndef by_length(xs):\n d = defaultdict(list)\n for x in xs: d[len(x)].append(x)\n return d",
        "from collections import defaultdict\ndef by_length(xs):\n d = defaultdict(set)\n for x in xs: d[len(x)].add(x)\n return d",
    ),
    "tuples": (
        "assert pairs((1, 2), (3, 4)) == ((1, 3), (2, 4))",
        "def pairs(a, b): return tuple(zip(a, b))",
        "def pairs(a, b): return list(zip(a, b))",
    ),
    "floats": (
        "import math\nassert math.isclose(area(2), 12.566370614359172, rel_tol=0.001)\nassert round(area(1), 2) == 3.14",
        "import math\ndef area(r): return math.pi * r ** 2",
        "def area(r): return 3.0 * r ** 2",
    ),
    "a set": (
        "assert shared([1, 2, 2], [2, 3]) == {2}\nassert sorted(shared([3, 1], [1, 3])) == [1, 3]",
        "def shared(a, b): return set(a) & set(b)",
        "def shared(a, b): return [x for x in a if x in b]",
    ),
    "an order": (
        "assert ranked({'x': 1, 'y': 3}) == [('y', 3), ('x', 1)]",
        "from operator import itemgetter\ndef ranked(d): return sorted(d.items(), key=itemgetter(1), reverse=True)",
        "def ranked(d): return sorted(d.items())",
    ),
    "an argument that changes": (
        "x = [1, 2, 3, 4]\nassert drop_even(x) is None\nassert x == [1, 3]",
        "def drop_even(x): x[:] = [v for v in x if v % 2]",
        "def drop_even(x): x = [v for v in x if v % 2]",
    ),
    "an exception": (
        "try:\n root(-1)\n raise RuntimeError\nexcept ValueError: pass\nassert root(4) == 2.0",
        "def root(x):\n if x < 0: raise ValueError(x)\n return x ** 0.5",
        "def root(x): return x ** 0.5",
    ),
    "a generator": (
        "assert list(chunks([1, 2, 3], 2)) == [[1, 2], [3]]",
        "def chunks(x, n):\n for i in range(0, len(x), n): yield x[i:i + n]",
        "def chunks(x, n):\n for i in range(0, len(x) - 1, n): yield x[i:i + n + 1]",
    ),
    "a text": (
        "assert snake('aB') == 'a_b'\nassert snake('abc') == 'abc'",
        "import re\ndef snake(s): return re.sub('([A-Z])', r'_\\1', s).lower()",
        "def snake(s): return s.lower()",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def unsafe():
    return open_sandbox("unsafe", confirm_unsafe_code=True)


def with_numpy(rows, form, answers):
    """The answer's import is at the top, as models write it."""
    for number, answer in answers.items():
        row = rows[number]
        assert row["task_id"] == f"HumanEval/{number}"
        yield form(row | {"prompt": f"import numpy as np\n{row['prompt']}"}, f"\n{answer}\n")


def check_as_plain(place, programs, monkeypatch):
    """Verdicts of `place` are those of a plain process; which these are."""
    reasons = [it.reason for it in place.run(programs, timeout_s=PATIENT_S)]
    tests = [it.test if it.entry_point is None else f"{it.test}\ncheck({it.entry_point})" for it in programs]
    plain = [in_a_plain_process(it.source, test, monkeypatch) for it, test in zip(programs, tests, strict=True)]
    assert reasons == plain
    return set(plain)


@pytest.mark.parametrize("form", [with_entry_point, as_code_eval])
def test_numpy(sandbox, rows, form, monkeypatch):
    assert check_as_plain(sandbox, [*with_numpy(rows, form, NUMPY)], monkeypatch) == {"passed"}
    assert "passed" not in check_as_plain(sandbox, [*with_numpy(rows, form, WRONG)], monkeypatch)


def of_mbpp(which):
    return [Program(source=it[which], test=it[0], entry_point=None) for it in FORM_OF_MBPP.values()]


def test_form_of_mbpp(sandbox, monkeypatch):
    assert check_as_plain(sandbox, of_mbpp(1), monkeypatch) == {"passed"}
    assert "passed" not in check_as_plain(sandbox, of_mbpp(2), monkeypatch)


def test_unconfined(unsafe, rows, monkeypatch):
    right = [*with_numpy(rows, as_code_eval, NUMPY), *of_mbpp(1)]
    assert check_as_plain(unsafe, right, monkeypatch) == {"passed"}
    wrong = [*with_numpy(rows, as_code_eval, WRONG), *of_mbpp(2)]
    assert "passed" not in check_as_plain(unsafe, wrong, monkeypatch)
