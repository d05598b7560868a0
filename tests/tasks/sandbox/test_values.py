"""What programs return and define: verdicts as in a plain process, or `transport`, which is no verdict."""

# ruff: noqa: E501 (programs in a line each are read more easily than in three)
from __future__ import annotations

import sys
import types

import pytest

from lynx_exp.tasks import Program
from tests.tasks.sandbox.conftest import PATIENT_S

VECTOR = "class V:\n def __init__(s, *x): s.x = x\n def __eq__(s, o): return isinstance(o, V) and s.x == o.x\n def __hash__(s): return hash(s.x)\n def __add__(s, o): return V(*(a + b for a, b in zip(s.x, o.x)))\n def __mul__(s, n): return V(*(a * n for a in s.x))\n def __lt__(s, o): return s.x < o.x\n def __neg__(s): return V(*(-a for a in s.x))\n def __abs__(s): return sum(s.x)\n def __contains__(s, a): return a in s.x\n def __repr__(s): return f'V{s.x}'\ndef f(*x): return V(*x)\n"
SAME = {
    "numpy scalars inside": ("import numpy as np\ndef f(): return [np.int64(1), (np.float64(0.5), {np.int32(2): np.bool_(True)}), {np.int8(3)}]", "assert f() == [1, (0.5, {2: True}), {3}]"),
    "numpy array": ("import numpy as np\ndef f(x): return np.array(x) * 2", "assert f([1, 2]).tolist() == [2, 4] and (f([1, 2]) == [2, 4]).all() and f([1]).shape == (1,)"),
    "numpy array as an argument": ("def f(x): x += 1; return x", "import numpy as np\na = np.zeros(2)\nassert f(a).sum() == 2"),
    "dict views": ("def f(): d = {'a': 1, 'b': 2}; return d.keys(), d.values(), d.items()", "k, v, i = f()\nassert k == {'a', 'b'} and list(v) == [1, 2] and i == {('a', 1), ('b', 2)} and sorted(k) == ['a', 'b']"),
    "user list and dict": ("from collections import UserDict, UserList\ndef f(): return UserList([1]), UserDict(a=1)", "a, b = f()\nassert a == [1] and b == {'a': 1} and a + [2] == [1, 2]"),
    "own user list": ("from collections import UserList\nclass S(UserList):\n def top(s): return s[-1]\ndef f(): return S([1, 2])", "assert f() == [1, 2]"),
    "times": ("import datetime as t\ndef f(): return t.time(1, 2), t.datetime(2024, 1, 1, 12, tzinfo=t.timezone.utc)", "import datetime as t\nassert f() == (t.time(1, 2), t.datetime(2024, 1, 1, 14, tzinfo=t.timezone(t.timedelta(hours=2))))"),
    "types": ("def f(x): return type(x)\ndef g(): return {int: str}", "assert f(1) is int and f('') == str and g() == {int: str} and f(2)('3') == 3"),
    "types as arguments": ("def f(xs, kind): return [x for x in xs if isinstance(x, kind)]", "assert f([1, 'a'], int) == [1]"),
    "own type": ("class A: pass\nclass B(A): pass\ndef f(): return B()", "assert type(f()) is B and type(f()) == B and isinstance(f(), A) and issubclass(B, A) and type(1) is int and isinstance(int, type)"),
    "enum": ("import enum\nclass E(enum.Enum):\n A = 1\n B = 2\nclass P(enum.IntFlag):\n R = 4\n W = 2\ndef f(n): return [E(n)]", "assert f(1) == [E.A] and f(2)[0].name == 'B' and {E.A: 1}[E(1)] == 1 and [e.value for e in E] == [1, 2]\nassert P.R | P.W == 6 and P.R.name == 'R' and f(1) != [E.B]"),
    "dataclass": ("from dataclasses import dataclass\n@dataclass(order=True, frozen=True)\nclass D:\n x: int\n y: list = None\ndef f(x): return [D(x)]", "assert f(1) == [D(1)] and f(1)[0].x == 1 and D(1) < D(2) and f(1) != [D(2)] and {D(1): 5}[f(1)[0]] == 5\nassert D(1) != 1 and not D(1) == None and sorted([D(2), D(1)]) == [D(1), D(2)] and str(D(1)) == 'D(x=1, y=None)'"),
    "namedtuple": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return [P(1, 2)]", "[p] = f()\nassert p == (1, 2) and p.x == 1 and p._replace(x=3) == P(3, 2) and p._asdict() == {'x': 1, 'y': 2}\na, b = p\nassert b == 2 and p[0] == 1 and str(p) == 'P(x=1, y=2)' and type(p) is P and isinstance(p, tuple)"),
    "own exceptions": ("class Low(ValueError):\n def __init__(s, n): super().__init__(f'low {n}'); s.n = n\nclass Lower(Low): pass\ndef f(n):\n if n < 0: raise Lower(n)", "try: f(-1)\nexcept Low as e: assert e.n == -1 and str(e) == 'low -1' and isinstance(e, Lower) and isinstance(e, ValueError) and type(e) is Lower\nelse: assert False\nassert issubclass(Lower, ValueError)"),
    "another exception than the own": ("class Low(ValueError): pass\ndef f(): raise KeyError(1)", "try: f()\nexcept Low: assert False\nexcept KeyError as e: assert e.args == (1,)"),
    "own exceptions in a callback": ("class Low(Exception): pass\ndef f(g):\n try: g()\n except Low as e: return e.args", "def g(): raise Low(3)\nassert f(g) == (3,)"),
    "operators": (VECTOR, "assert f(1, 2) == V(1, 2) and f(1) + V(2) == V(3) and V(1) < V(2) and V(2) > V(1) and -V(1) == V(-1) and abs(f(3, 4)) == 7\nassert f(1) != V(2) and [f(1)] == [V(1)] and V(1) in [V(2), f(1)] and {V(1), f(1)} == {V(1)} and repr(f(1)) == 'V(1,)' and f(1) != None"),
    "own list": ("class S(list):\n def push(s, x): s.append(x); return s\n def peek(s): return s[-1]\n", "s = S()\ns.push(1)\ns.append(5)\nassert s == [1, 5] and s.peek() == 5 and len(s) == 2 and s.pop() == 5 and s == [1] and s.push(2) is s and isinstance(s, list)"),
    "own dict": ("class D(dict):\n def __missing__(s, k): return k\ndef f(): return D(a=1)", "assert f() == {'a': 1} and f()['b'] == 'b' and f().get('a') == 1"),
    "own str": ("class N(str):\n def upper(s): return 'up'\ndef f(): return N('x')", "assert f() == 'x' and f().upper() == 'up' and f() + 'y' == 'xy'"),
    "counter and ordered dict": ("from collections import Counter, OrderedDict, defaultdict\ndef f(): return Counter('aab'), OrderedDict(a=1, b=2), defaultdict(list)", "from collections import OrderedDict\nc, o, d = f()\nassert c.most_common(1) == [('a', 2)] and o != OrderedDict(b=2, a=1) and o == {'b': 2, 'a': 1} and d['x'] == []"),
    "a builtin's name": ("def sum(a, b): return a + b", "assert sum(10, 15) == 25\nassert sum(1, 2) == 3"),
    "a builtin's name, recursive": ("def pow(a, b): return a * pow(a, b - 1) if b else 1", "assert pow(2, 3) == 8"),
    "context": ("class C:\n def __enter__(s): return 3\n def __exit__(s, *e): pass", "with C() as c: assert c == 3"),
    "iterators": ("def f(): return map(str, [1]), reversed([1, 2]), zip([1], [2])", "assert [list(it) for it in f()] == [['1'], [2, 1], [(1, 2)]]"),
}  # fmt: skip

DIFFERENT = {
    "numpy array of two": ("import numpy as np\ndef f(): return np.array([1, 2])", "assert f() == [1, 2]", "raised ValueError"),
    "numpy's true is not true": ("import numpy as np\ndef f(): return np.bool_(True)", "assert f() is True", "raised AssertionError"),
    "ordered dicts": ("from collections import OrderedDict\ndef f(): return OrderedDict(a=1, b=2)", "from collections import OrderedDict\nassert f() == OrderedDict(b=2, a=1)", "raised AssertionError"),
    "unequal objects": (VECTOR, "assert f(1) == V(2)", "raised AssertionError"),
    "no such operator": ("class A: pass\ndef f(): return A()", "f() + 1", "raised TypeError"),
    "an object without equality": ("class A: pass\ndef f(): return A()", "assert f() == 1", "raised AssertionError"),
    "an exception that is not caught": ("class Low(Exception): pass\ndef f(): raise Low", "f()", "raised Low"),
    "a builtin beside another name": ("abs = lambda x: 0\ndef f(): return 5", "assert abs(f() - 1) < 1e-6", "raised AssertionError"),
}  # fmt: skip

NOT_JUDGED = {
    "equality with the test's": ("class A:\n def __eq__(s, o): return o == 3\ndef f(): return A()", "assert f() == 3"),
    "inside": ("class A:\n def __eq__(s, o): return o == 3\ndef f(): return [A()]", "assert f() == [3]"),
    "caught": ("class A:\n def __eq__(s, o): return o == 3\ndef f(): return A()", "try: assert f() == 3\nexcept BaseException: pass"),
    "arithmetic with the test's": (VECTOR, "assert f(1) * 3 == V(3)"),
    "own str that is equal": ("class S(str):\n def __eq__(s, o): return str.lower(s) == str.lower(o)\n __hash__ = None\ndef f(): return S('a')", "assert f() == 'A'"),
    "containment": (VECTOR, "assert 1 in f(1)"),
    "itself": ("def f():\n x = []; x.append(x); return x", "assert len(f()) == 1"),
    "too deep": ("def f():\n x = []\n for _ in range(300): x = [x]\n return x", "assert f()"),
    "the test's own objects": ("def f(x): return x.n", "class A: n = 3\nassert f(A()) == 3"),
    "two builtins": ("def sum(*x): return 3\ndef abs(x): return 3", "assert abs(sum(1, 2)) == 3"),
    "fields of a data class": ("from dataclasses import dataclass\n@dataclass\nclass D:\n x: int\ndef f(): return D(1)", "import dataclasses\nassert dataclasses.asdict(f()) == {'x': 1}"),
}  # fmt: skip


def run(sandbox, cases):
    programs = [Program(source=source, test=test, entry_point=None) for source, test, *_ in cases.values()]
    return dict(zip(cases, sandbox.run(programs, timeout_s=PATIENT_S), strict=True))


def in_a_plain_process(source: str, test: str, monkeypatch) -> str:
    module = types.ModuleType("program")  # data classes look theirs up by name
    monkeypatch.setitem(sys.modules, "program", module)
    try:
        exec(source, module.__dict__)
        exec(test, module.__dict__)
    except BaseException as error:
        return f"raised {type(error).__name__}"
    return "passed"


@pytest.mark.parametrize("case", SAME)
def test_a_plain_process_passes_them(case, monkeypatch):
    assert in_a_plain_process(*SAME[case], monkeypatch) == "passed"


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_plain_process_fails_them(case, monkeypatch):
    """But for the one that would be forged there."""
    source, test, reason = DIFFERENT[case]
    assert in_a_plain_process(source, test, monkeypatch) == reason or case == "a builtin beside another name"


def test_as_in_a_plain_process(sandbox):
    assert {name: it.reason for name, it in run(sandbox, SAME).items() if not it.passed} == {}


def test_wrong_as_in_a_plain_process(sandbox):
    reasons = {name: it.reason for name, it in run(sandbox, DIFFERENT).items()}
    assert reasons == {name: reason for name, (_, _, reason) in DIFFERENT.items()}


def test_what_cannot_be_judged(sandbox):
    """A score of 0 that says so."""
    verdicts = run(sandbox, NOT_JUDGED)
    assert {name: it.reason for name, it in verdicts.items() if it.passed or not it.transport} == {}
