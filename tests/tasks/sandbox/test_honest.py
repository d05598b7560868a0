"""What honest programs may count on: verdicts are those of one plain process, in every tier."""

# ruff: noqa: E501 (programs in a line each are read more easily than in three)

from __future__ import annotations

import pytest

from lynx_exp.tasks import Program
from tests.tasks.sandbox.conftest import PATIENT_S

HONEST = {
    "counter": ("import collections\ndef f(s): return collections.Counter(s)", "assert f('aab') == {'a': 2, 'b': 1}"),
    "ordered dict": ("from collections import OrderedDict\ndef f(): return OrderedDict(a=1)", "assert f() == {'a': 1}"),
    "default dict": (
        "from collections import defaultdict\ndef f():\n d = defaultdict(list); d[1].append(2); return d",
        "assert f() == {1: [2]}",
    ),
    "namedtuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n x: int\n y: int\ndef f(): return P(1, 2)",
        "assert f() == (1, 2)",
    ),
    "int enum": ("import enum\nclass E(enum.IntEnum):\n A = 3\ndef f(): return E.A", "assert f() == 3\nassert E.A == 3"),
    "enum": (
        "import enum\nclass E(enum.Enum):\n A = 3\ndef f(x): return x",
        "assert f(E.A) == E.A and f(E.A) is E.A\nassert E.A.value == 3",
    ),
    "floats": (
        "import math\ndef f(x): return x",
        "import math, struct\nfor x in (0.1, -0.0, 1e-300, math.inf, -math.inf, math.nan, 5e-324):\n"
        "    assert struct.pack('d', f(x)) == struct.pack('d', x)\n    assert type(f(x)) is float",
    ),
    "integers": ("def f(x): return -x * 7", "for x in (0, 2**63, -2**63, 10**4000, True):\n    assert f(x) == -x * 7"),
    "text": ("def f(x): return x + x", "for x in ('', 'ä', '\\ud800', '\\ud83d' '\\ude00', '\\0'):\n assert f(x) == x + x"),
    "sets": ("def f(x): return x | {9}", "assert f({1, 2}) == {1, 2, 9}\nassert f(frozenset({1})) == frozenset({1, 9})"),
    "numbers": (
        "from decimal import Decimal\nfrom fractions import Fraction\ndef f(x): return [x, Decimal('1.50'), Fraction(2, 4)]",
        "from decimal import Decimal\nfrom fractions import Fraction\n"
        "assert f(1 + 2j) == [1 + 2j, Decimal('1.5'), Fraction(1, 2)]\nassert str(f(1)[1]) == '1.50'",
    ),
    "dates": (
        "import datetime\ndef f(d): return d + datetime.timedelta(days=1)",
        "import datetime as t\nassert f(t.date(2024, 2, 28)) == t.date(2024, 2, 29)\n"
        "assert f(t.datetime(2024, 1, 1, 5)) == t.datetime(2024, 1, 2, 5)",
    ),
    "deque": ("from collections import deque\ndef f(): return deque([1, 2], 5)", "assert list(f()) == [1, 2]"),
    "generator": ("def f(n):\n    for i in range(n): yield i", "assert list(f(4)) == [0, 1, 2, 3]\nassert next(f(1)) == 0"),
    "endless generator": (
        "import itertools\ndef f(): return itertools.count()",
        "from itertools import islice\nassert list(islice(f(), 3)) == [0, 1, 2]",
    ),
    "in place": (
        "def f(x, y=None):\n    x.sort(); x.append([0]); y and y.update(a=1)",
        "l, d = [3, 1], {'b': 2}\nassert f(l, y=d) is None\nassert l == [1, 3, [0]] and d == {'b': 2, 'a': 1}",
    ),
    "in place, inner": (
        "def f(m): m.reverse(); m[0].append(7); return m",
        "a, b = [1], [2]\nm = [a, b]\nassert f(m) is m\nassert m == [[2, 7], [1]] and m[0] is b and m[1] is a",
    ),
    "the same argument twice": ("def f(a, b): a.append(1); return b", "x = []\nassert f(x, x) == [1] and x == [1]"),
    "an exception": (
        "class Bad(ValueError): pass\ndef f(): raise Bad('no', 3)",
        "try: f()\nexcept ValueError as error: assert error.args == ('no', 3)\nelse: assert False",
    ),
    "an odd exception": ("def f(): b'\\xff'.decode()", "try: f()\nexcept UnicodeDecodeError: pass\nelse: assert False"),
    "a class": (
        "class Pair:\n def __init__(self, a, b): self.a, self.b = a, b\n"
        "def f(pairs): return max(p.b - p.a for p in pairs)",
        "assert f([Pair(5, 24), Pair(1, 2)]) == 19\np = Pair(1, 2)\np.a = 5\nassert p.a == 5 and isinstance(p, Pair)",
    ),
    "a container class": (
        "class S:\n def __init__(s): s.d = []\n def push(s, x): s.d.append(x)\n def __len__(s): return len(s.d)\n"
        " def __getitem__(s, i): return s.d[i]\n def __str__(s): return 'S'",
        "s = S()\nassert not s\ns.push(3)\nassert s and len(s) == 1 and s[0] == 3 and list(s) == [3] and 3 in s\n"
        "assert str(s) == 'S'",
    ),
    "a data class": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Optional\n@dataclass\n"
        "class D:\n    x: int\n    y: Optional[D] = None\ndef f(): return D(1, D(2)).y.x",
        "assert f() == 2",
    ),
    "functions as arguments": (
        "def f(g, xs): return sorted(filter(lambda x: g(x) > 1, xs), key=g)",
        "assert f(lambda x: -x, [-3, -2, 4]) == [-2, -3]\nassert f(abs, [3, 1]) == [3]",
    ),
    "functions as arguments that call back": ("def f(g, n): return n and 1 + g(f, n - 1)", "assert f(lambda h, n: h(lambda *_: 5, n), 2) == 7"),
    "functions as arguments that raise": (
        "def f(g):\n    try: g()\n    except KeyError: return 'caught'",
        "def g(): raise KeyError(3)\nassert f(g) == 'caught'",
    ),
    "a function as a result": ("def f(n): return lambda x: x + n", "assert f(3)(4) == 7"),
    "a module that only the source imports": ("import math\ndef f(): return 0.1 + 0.2", "assert math.isclose(f(), 0.3)"),
    "a constant": ("N = [1, 2]", "assert N == [1, 2]"),
    "printing": ("import sys\ndef f(): print('x' * 10_000_000); sys.stderr.write('y'); return 1", "assert f() == 1"),
    "recursion": ("def f(n): return n and 1 + f(n - 1)", "assert f(950) == 950"),
    "too much recursion": (
        "def f(n): return n and 1 + f(n - 1)",
        "try: f(10**6)\nexcept RecursionError: pass\nelse: assert False",
    ),
    "threads": (
        "import threading\ndef f():\n r = []\n t = [threading.Thread(target=r.append, args=(i,)) for i in range(4)]\n"
        " [x.start() for x in t]; [x.join() for x in t]\n return sorted(r)",
        "assert f() == [0, 1, 2, 3]",
    ),
    "asyncio": (
        "import asyncio\nasync def g(): await asyncio.sleep(0); return 3\ndef f(): return asyncio.run(g())",
        "assert f() == 3",
    ),
    "files": (
        "import os, tempfile\ndef f():\n with open('a', 'w') as a: a.write('x')\n os.rename('a', 'b')\n"
        " with tempfile.TemporaryDirectory() as d: open(d + '/c', 'w').close()\n"
        " return open('b').read(), os.listdir('.')",
        "assert f() == ('x', ['b'])",
    ),
    "input": ("def f():\n    try: return input()\n    except EOFError: return 'end'", "assert f() == 'end'"),
    "main": ("def f(): return 1\nif __name__ == '__main__': raise SystemExit", "assert f() == 1"),
    "random numbers repeat": ("import random\nX = random.random()\ndef f(): return X", "assert f() == 0.8444218515250481"),
    "hashes repeat": ("def f(): return hash('x')", "assert f() == hash('x')"),
    "many": ("def f(x): return [v + 1 for v in x]", "x = list(range(10**5))\nassert f(x) == list(range(1, 10**5 + 1))"),
    "mixed": ("def f(x): return x", "x = [1, 2.0, None, 'a', b'b', (3, [4]), {5: {6}}, range(3), bytearray(b'c')]\nassert f(x) == x"),
    "signals to itself": ("import os, signal\ndef f():\n signal.signal(10, lambda *_: None); os.kill(os.getpid(), 10); return 1", "assert f() == 1"),
    "threads that call the test's function": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(g, xs):\n with ThreadPoolExecutor(8) as e: return list(e.map(g, xs))",
        "import time\ndef g(x):\n time.sleep(0.0001); return 2 * x\nassert f(g, list(range(60))) == [2 * x for x in range(60)]",
    ),
    "threads whose calls are nested": (
        "import threading\ndef twice(x): return 2 * x\ndef f(g):\n r = []\n t = [threading.Thread(target=lambda i=i: r.append(g(i))) for i in range(6)]\n"
        " [x.start() for x in t]; [x.join() for x in t]\n return sorted(r)",
        "assert f(lambda i: twice(twice(i))) == [0, 4, 8, 12, 16, 20]",
    ),
    "a thread that goes on": (
        "import threading\ndef f(g):\n threading.Thread(target=lambda: [g(i) for i in range(50)], daemon=True).start()\n return 1",
        "for i in range(5): assert f(abs) == 1",
    ),
    "threads of the test": (
        "C = []\ndef f(x): C.append(x); return x + 1",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as e: assert list(e.map(f, range(40))) == list(range(1, 41))\nassert len(C) == 40",
    ),
    "modules that functions of others import": (
        "import concurrent.futures, logging, logging.handlers, zipfile\nfrom concurrent.futures import ProcessPoolExecutor\nfrom datetime import datetime\n"
        "def f():\n with concurrent.futures.ThreadPoolExecutor(2) as e: assert list(e.map(abs, [-1])) == [1]\n"
        " with zipfile.ZipFile('z.zip', 'w') as z: z.writestr('a', 'x')\n"
        " return datetime.strptime('2024-01-05', '%Y-%m-%d').day, 'ä'.encode('latin-1'), zipfile.ZipFile('z.zip').read('a')",
        "assert f() == (5, b'\\xe4', b'x')",
    ),
    "copies of files": (
        "import os, shutil\ndef f():\n open('a', 'w').write('x'); shutil.copy('a', 'b'); os.chmod('a', os.stat('a').st_mode & 0o7777)\n return open('b').read()",
        "assert f() == 'x'",
    ),
    "a kept list comes again": (
        "K = []\ndef f(x): K.append(x); return len(K), K[0] is x",
        "l = [1]\nassert f(l) == (1, True)\nl.append(2)\nassert f(l) == (2, True) and K[0] is l",
    ),
    "a kept list comes in another": (
        "K = []\ndef f(x): K.append(x)\ndef g(x): x[0].append(5); return x[0] is K[0]",
        "l = [1]\nf(l)\nassert g([l]) is True and l == [1, 5]",
    ),
    "a kept list is what the test's function returns": (
        "K = []\ndef f(x): K.append(x)\ndef g(h): return h() is K[0]",
        "l = [1]\nf(l)\nassert g(lambda: l) is True",
    ),
    "annotations": ("def f(x: int) -> str: return ''", "assert f.__annotations__ == {'x': int, 'return': str}"),
    "helpers in test": ("def f(x): return x", "def g(x):\n    def h(): return f(x)\n    return [h() for _ in range(2)]\nassert g(3) == [3, 3]"),
}  # fmt: skip


def test_honest_programs(sandbox):
    programs = [Program(source=source, test=test, entry_point=None) for source, test in HONEST.values()]
    verdicts = sandbox.run(programs, timeout_s=PATIENT_S)
    assert {name: it.reason for name, it in zip(HONEST, verdicts, strict=True) if not it.passed} == {}


def test_numpy(sandbox):
    pytest.importorskip("numpy")
    source = "import numpy as np\ndef f(x): return np.array(x).sum()\ndef g(x): return np.array(x) + 1"
    test = "assert f([1, 2]) == 3 and f([0.5]) == 0.5\nassert g([1]).tolist() == [2] and len(g([1, 2])) == 2"
    [verdict] = sandbox.run([Program(source=source, test=test, entry_point=None)], timeout_s=PATIENT_S)
    assert verdict.reason == "passed"


@pytest.mark.slow
def test_pandas(sandbox):
    """Whatever else is installed that it would import."""
    pytest.importorskip("pandas")
    source = "import pandas as pd\ndef f(): return pd.DataFrame({'a': [1, 2]})"
    [verdict] = sandbox.run(
        [Program(source=source, test="assert f()['a'].sum() == 3", entry_point=None)], timeout_s=PATIENT_S
    )
    assert verdict.reason == "passed"


def test_prelude(sandbox):
    """A prompt's helpers are the test's own, whatever the source makes of them; its stubs are the source's."""
    prelude = "def twice(x):\n    return 2 * x\n\ndef f(x):\n    '''Double.'''\n"
    tests = {
        "def check(c): assert c(3) == twice(3)": "f",
        "assert f(3) == twice(3)": None,
        "def check(c): assert f is c and f(3) == 6": "f",
    }
    for test, entry_point in tests.items():
        good, bad = (
            Program(
                source=f"def twice(x): return 0\ndef f(x): return {answer}",
                test=test,
                entry_point=entry_point,
                prelude=prelude,
            )
            for answer in ("6", "0")
        )
        assert [it.reason for it in sandbox.run([good, bad], timeout_s=PATIENT_S)] == [
            "passed",
            "raised AssertionError",
        ]


def test_a_prelude_that_fails(sandbox):
    program = Program(source="def f(): return 1", test="assert f() == 1", entry_point=None, prelude="1 / 0")
    [verdict] = sandbox.run([program], timeout_s=PATIENT_S)
    assert verdict.reason == "the prelude raised ZeroDivisionError"
