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
    "a builtin beside itself": ("def f(): return len", "assert f() == f() and f() != 3"),
    "a list that gets an object": ("class N: pass\ndef f(l): l.append(N())", "l = []\nf(l)\nassert len(l) == 1"),
    "a list that gets an object, then an error": ("class N: pass\ndef f(l): l.append(N()); raise ValueError", "l = []\ntry: f(l)\nexcept ValueError: pass\nassert len(l) == 1"),
    "modes as they are": ("import os\ndef f(): open('x', 'w').close(); os.chmod('x', os.stat('x').st_mode); return 1", "assert f() == 1"),
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
    "a list that an object keeps": ("class S:\n def __init__(s, l): s.l = l\n def add(s, x): s.l.append(x)\n def total(s): return sum(s.l)", "l = []\ns = S(l)\ns.add(1)\nassert l == [1]\nl.append(2)\nassert s.total() == 3 and s.l is l"),
    "a list that an object hands out": ("class S:\n def __init__(s): s.l = []; s.rows = ([1], {2: [3]})\n def get(s): return s.l\n def push(s, x): s.l.append([x])", "s = S()\ns.get().append(2)\nassert s.l == [2]\nheld = s.get()\ns.push(5)\nassert held == [2, [5]]\nheld[1].append(6)\nassert s.l == [2, [5, 6]]\ns.rows[1][2].append(4)\nassert s.rows == ([1], {2: [3, 4]})"),
    "a list that is cached": ("import functools\nX = [1]\n@functools.lru_cache\ndef g(): return [1]\ndef f(): return X", "X.append(2)\nassert f() == [1, 2] and f() is f() is X\ng().append(2)\nassert g() == [1, 2]"),
    "sets and dicts that are kept": ("class S:\n def __init__(s): s.seen = set(); s.by = {}\n def add(s, x): s.seen.add(x); s.by[x] = s.seen", "s = S()\na, b = s.seen, s.by\ns.add(1)\nassert a == {1} and b == {1: {1}} and b[1] is a\na.add(2); del b[1]\nassert s.seen == {1, 2} and s.by == {}"),
    "an argument in an attribute": ("class S: pass\ndef f(s): s.l.append(3)", "s, l = S(), [1]\ns.l = l\nf(s)\nassert l == [1, 3]"),
    "an argument of a callback": ("def f(g):\n l = [1]; g(l); return l", "def g(l): l.append(2)\nassert f(g) == [1, 2]"),
    "an argument changed before it raised": ("def f(l): l.append(1); raise ValueError", "l = []\ntry: f(l)\nexcept ValueError: pass\nassert l == [1]"),
    "an ordered dict in place": ("def f(d): d.move_to_end('a'); d['c'] = 3; return d.copy()", "from collections import OrderedDict\nd = OrderedDict(a=1, b=2)\nassert list(f(d)) == ['b', 'a', 'c'] and list(d.items()) == [('b', 2), ('a', 1), ('c', 3)] and repr(d)"),
    "rows that are one row": ("def f(): return [[0] * 2] * 2", "g = f()\ng[0][0] = 1\nassert g == [[1, 0], [1, 0]]"),
    "an array in place": ("import numpy as np\nclass S:\n def __init__(s, a): s.a = a\n def double(s): s.a *= 2\ndef f(x): x *= 2", "import numpy as np\na = np.array([1, 2])\nf(a)\nassert a.tolist() == [2, 4]\nm = np.arange(4).reshape(2, 2)\nf(m[:, 1])\nassert m.tolist() == [[0, 2], [2, 6]]\ns = S(a)\ns.double()\nassert a.tolist() == [4, 8]\na += 1\nassert s.a.tolist() == [5, 9]"),
    "what a function says of itself": ("def f(x: int, y=3, *, z: str = 'a') -> int:\n 'doc'\n return 1", "import inspect\nassert f.__name__ == f.__qualname__ == 'f' and f.__doc__ == 'doc' and f.__defaults__ == (3,) and f.__kwdefaults__ == {'z': 'a'}\nassert f.__annotations__ == {'x': int, 'z': str, 'return': int} and f.__code__.co_argcount == 2\nassert str(inspect.signature(f)) == \"(x: int, y=3, *, z: str = 'a') -> int\""),
    "a decorator of the program": ("import functools, inspect\ndef deco(fn):\n @functools.wraps(fn)\n def w(*a): return (fn.__name__, list(inspect.signature(fn).parameters), fn(*a))\n return w", "@deco\ndef g(x):\n 'it'\n return x\nassert g(3) == ('g', ['x'], 3) and g.__name__ == 'g' and g.__doc__ == 'it'"),
    "what can be called": ("class A: pass\nclass B:\n def __call__(s): return 1\ndef f(): return 1", "assert callable(A) and callable(f) and callable(B()) and not callable(A())\nassert not hasattr(A(), '__iter__') and not hasattr(A(), '__len__')\ntry: A()()\nexcept TypeError: pass\nelse: assert False\ntry: len(A())\nexcept TypeError: pass\nelse: assert False"),
    "a context that swallows": ("import contextlib\ndef f(): return contextlib.suppress(ValueError)", "with f(): raise ValueError\nwith f(): int('x')\ntry:\n with f(): raise KeyError\nexcept KeyError: pass\nelse: assert False"),
    "causes": ("def f():\n try: 1 / 0\n except ZeroDivisionError as z: raise ValueError('x') from z", "try: f()\nexcept ValueError as e: assert isinstance(e.__cause__, ZeroDivisionError) and isinstance(e.__context__, ZeroDivisionError) and e.__suppress_context__\nelse: assert False"),
    "what exceptions know": ("def f(): open('/nonexistent/lynx')\ndef g(): b'\\xff'.decode()\ndef h():\n e = SystemExit(3); e.add_note('n'); raise e", "try: f()\nexcept FileNotFoundError as e: assert e.errno == 2 and e.filename == '/nonexistent/lynx' and '/nonexistent/lynx' in str(e)\ntry: g()\nexcept UnicodeDecodeError as e: assert e.start == 0 and e.object == b'\\xff'\ntry: h()\nexcept SystemExit as e: assert e.code == 3 and e.__notes__ == ['n']"),
    "the test's own exceptions": ("def f(g, *kinds):\n try: g()\n except kinds as e: return type(e).__name__, e.args\n except KeyError: return 'key'\ndef h(g): g()", "class Bad(Exception): pass\nclass Worse(Bad, KeyError): pass\ndef g(kind):\n def raises(): raise kind('x')\n return raises\nassert f(g(Bad), Bad) == ('Bad', ('x',)) and f(g(Worse), Bad) == ('Worse', ('x',)) and f(g(Worse)) == 'key'\ntry: h(g(Worse))\nexcept Worse as e: assert e.args == ('x',)\nelse: assert False"),
    "a function put into a class": ("class A:\n x = 2", "A.f = lambda self, n: self.x + n\nassert A().f(3) == 5"),
    "coroutines": ("import asyncio\nasync def f(x): await asyncio.sleep(0); return x + 1", "import asyncio\nassert asyncio.run(f(2)) == 3\nasync def g(): return await f(1) + sum(await asyncio.gather(f(1), f(2)))\nassert asyncio.run(g()) == 7"),
    "generators": ("def f():\n x = yield 1\n yield x\n return 3", "import types\ng = f()\nassert isinstance(g, types.GeneratorType) and next(g) == 1 and g.send(5) == 5\ntry: next(g)\nexcept StopIteration as e: assert e.value == 3\nassert isinstance(f, types.FunctionType)"),
    "the end by sending": ("def f():\n yield", "g = f(); next(g)\ntry: g.send(1)\nexcept Exception as e: assert type(e).__name__ == 'StopIteration'"),
    "an iterator of its own": ("class It:\n n = 0\n def __iter__(s): return s\n def __next__(s):\n  s.n += 1\n  if s.n > 2: raise StopIteration\n  return s.n", "assert list(It()) == [1, 2]\nit = It()\nassert next(it) == 1 and it.__next__() == 2 and next(it, 9) == 9"),
    "a function of a module that the program imports": ("from math import *\nfrom copy import deepcopy\ndef f(): return 4", "assert sqrt(f()) == 2 and deepcopy([f()]) == [4]"),
    "iterators": ("def f(): return map(str, [1]), reversed([1, 2]), zip([1], [2])", "assert [list(it) for it in f()] == [['1'], [2, 1], [(1, 2)]]"),
}  # fmt: skip

DIFFERENT = {
    "a builtin in place of its result": ("def f(x):\n return len", "assert f([1]) == 1", "raised AssertionError"),
    "a method in place of its result": ("def f(x):\n return x.pop", "assert f([1]) == 1", "raised AssertionError"),
    "an own method": ("class A:\n def g(s): return 1\ndef f(): return A().g", "assert f() == 1", "raised AssertionError"),
    "numpy array of two": ("import numpy as np\ndef f(): return np.array([1, 2])", "assert f() == [1, 2]", "raised ValueError"),
    "numpy's true is not true": ("import numpy as np\ndef f(): return np.bool_(True)", "assert f() is True", "raised AssertionError"),
    "ordered dicts": ("from collections import OrderedDict\ndef f(): return OrderedDict(a=1, b=2)", "from collections import OrderedDict\nassert f() == OrderedDict(b=2, a=1)", "raised AssertionError"),
    "unequal objects": (VECTOR, "assert f(1) == V(2)", "raised AssertionError"),
    "no such operator": ("class A: pass\ndef f(): return A()", "f() + 1", "raised TypeError"),
    "an object without equality": ("class A: pass\ndef f(): return A()", "assert f() == 1", "raised AssertionError"),
    "an exception that is not caught": ("class Low(Exception): pass\ndef f(): raise Low", "f()", "raised Low"),
    "a builtin beside another name": ("abs = lambda x: 0\ndef f(): return 5", "assert abs(f() - 1) < 1e-6", "raised AssertionError"),
}  # fmt: skip

NOT_SEEN = {
    "printing": ("def f(): print('hi')", "import io, contextlib\ns = io.StringIO()\nwith contextlib.redirect_stdout(s): f()\nassert s.getvalue() == 'hi\\n'"),
    "input": ("def f(): return int(input())", "from unittest.mock import patch\nwith patch('builtins.input', return_value='3'): assert f() == 3"),
    "a patch": ("import time\ndef f(): return time.time()", "from unittest import mock\nwith mock.patch('time.time', return_value=3): assert f() == 3"),
    "a module's attribute": ("import random\ndef f(): return random.randint(1, 10**9)", "import random\nkept, random.randint = random.randint, lambda *_: 3\ntry: assert f() == 3\nfinally: random.randint = kept"),
    "a seed": ("import random\ndef f(): return random.random()", "import random\nrandom.seed(5)\nassert f() == random.Random(5).random()"),
    "the environment": ("import os\ndef f(): return os.environ.get('QQ')", "import os\nos.environ['QQ'] = '1'\nassert f() == '1'"),
    "decimal numbers": ("from decimal import *\ndef f(): return str(Decimal(1) / Decimal(3))", "import decimal\nwith decimal.localcontext() as c:\n c.prec = 5\n assert f() == '0.33333'"),
    "a global name": ("N = 1\ndef f(): return N", "N = 5\nassert f() == 5"),
    "a global name that the program lacks": ("def f(): return helper(2)", "def helper(x): return x\nassert f() == 2"),
    "a file": ("def f(p):\n with open(p) as it: return it.read()", "import os, tempfile\nwith tempfile.TemporaryDirectory() as d:\n with open(d + '/t', 'w') as it: it.write('x')\n assert f(d + '/t') == 'x'"),
    "the order of a set": (
        "def f():\n s = set(range(1000)); s -= set(range(1000)) - {3, 8}; return s",
        "assert list(f()) == [3, 8]",
    ),
    "a class that derives": ("class A:\n def g(self): return 1", "class B(A):\n pass\nassert B().g() == 1"),
    "copies with times": ("import os, shutil, tempfile\ndef f():\n with tempfile.TemporaryDirectory() as d:\n  open(d + '/a', 'w').close(); shutil.copy2(d + '/a', d + '/b'); os.chmod(d + '/a', 0o600); return 1", "assert f() == 1"),
    "a context that swallows what was judged": ("import contextlib\ndef f(x): return contextlib.suppress(ValueError)", "with f(1) as c:\n if c is None: raise ValueError"),
}  # fmt: skip
"""Right in a plain process, and seen to depend on what the two processes do not have in common."""

NOT_JUDGED = {
    "a context that swallows assertions": ("import contextlib\ndef f(): return contextlib.suppress(BaseException)\ndef g(): return 0", "with f(): assert g() == 1"),
    "a context that swallows its own": ("import contextlib\ndef f(): return contextlib.suppress(BaseException)\ndef g(): raise ValueError", "with f(): assert g() == 1"),
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
        for part in (source, test):
            exec(compile(part, "<plain>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return f"raised {type(error).__name__}"
    return "passed"


@pytest.mark.parametrize("case", NOT_SEEN)
def test_a_plain_process_passes_what_cannot_be_seen(case, monkeypatch):
    monkeypatch.delenv("QQ", raising=False)
    assert in_a_plain_process(*NOT_SEEN[case], monkeypatch) == "passed"


def test_wrong_whatever_the_test_sets(sandbox):
    """A test that sets what the program does not use leaves no doubt."""
    cases = {
        "seed": ("def f(): return 1", "import random\nrandom.seed(5)\nassert f() == 2"),
        "sets": ("def f():\n s = set(range(1000)); s -= set(range(1000)) - {3, 8}; return s", "assert f() == {3, 9}"),
        "names": ("def f(x): y = x; return y", "x = 3\ny = f(x)\ndef check(c): assert c(1) == 2\ncheck(f)"),
        "attributes": ("class A:\n def __init__(s): s.x = 1\n def f(s): return s.x", "x = A()\nassert x.f() == 2"),
    }
    assert {it.reason for it in run(sandbox, cases).values()} == {"raised AssertionError"}


@pytest.mark.parametrize("case", SAME)
def test_a_plain_process_passes_them(case, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some write files
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
    verdicts = run(sandbox, NOT_JUDGED | NOT_SEEN)
    assert {name: it.reason for name, it in verdicts.items() if it.passed or not it.transport} == {}
