"""Wrong answers that try to count as right: by objects, by the interpreter, by the pipes."""

# ruff: noqa: E501 (programs in a line each are read more easily than in three)
from __future__ import annotations

import pytest

from lynx_exp.tasks import Program
from tests.tasks.sandbox.conftest import PATIENT_S, verdict

FORGERIES = {
    "always equal": "class A:\n __eq__ = lambda *_: True\n __ne__ = lambda *_: False\ndef f(n): return A()",
    "int that is equal": "class A(int):\n __eq__ = lambda *_: True\n __hash__ = int.__hash__\ndef f(n): return A(1)",
    "str that is equal": "class A(str):\n __eq__ = lambda *_: True\n __hash__ = None\ndef f(n): return A('')",
    "list that is equal": "class A(list):\n __eq__ = lambda *_: True\n __len__ = lambda s: 1\ndef f(n): return A()",
    "metaclass": "class M(type):\n __eq__ = lambda *_: True\n __instancecheck__ = lambda *_: True\n __hash__ = type.__hash__\nclass A(metaclass=M): pass\ndef f(n): return A",
    "mro": "class M(type):\n def mro(cls): return [cls, int, object]\nclass A(int, metaclass=M):\n __eq__ = lambda *_: True\n __index__ = lambda s: 6765\ndef f(n): return A()",
    "class that lies": "class A:\n __class__ = int\n __eq__ = lambda *_: True\ndef f(n): return A()",
    "mock": "from unittest.mock import ANY\ndef f(n): return ANY",
    "sys.exit": "import sys\ndef f(n): sys.exit(0)",
    "exit early": "raise SystemExit(0)",
    "os._exit": "import os\ndef f(n): os._exit(0)",
    "os._exit early": "import os\nos._exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(n): raise SystemExit",
    "no assertion": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {'__init__': lambda *a: None})\ndef f(n): return 0",
    "assertion that passes": "import builtins\nclass E(BaseException): pass\nbuiltins.AssertionError = E\ndef f(n): raise E",
    "builtins": "import builtins\nfor n in ('len', 'abs', 'all', 'any', 'sum', 'sorted', 'isinstance', 'type'): setattr(builtins, n, lambda *_: True)\ndef f(n): return 0",
    "own abs": "abs = lambda *_: 0\nall = lambda *_: True\nlen = lambda *_: 1\ndef f(n): return 0",
    "own check": "def check(c): pass\ndef f(n): return 0",
    "own assertions": "def assertion(ok, *_): pass\ndef f(n): return 0",
    "settrace": "import sys\ndef t(frame, event, arg):\n frame.f_trace_opcodes = True\n return t\nsys.settrace(t)\ndef f(n): sys._getframe().f_back.f_locals.update(x=1); return 0",
    "setprofile": "import sys, os\nsys.setprofile(lambda frame, event, arg: event == 'c_call' and 'write' in str(arg) and os._exit(0))\ndef f(n): return 0",
    "frames": "import sys\ndef f(n):\n fr = sys._getframe()\n while fr:\n  for k, v in list(fr.f_locals.items()):\n   if 'nonce' in str(k) or 'nonce' in repr(v)[:9999]: return v\n  fr = fr.f_back\n return 0",
    "objects": "import gc, re, os\ndef f(n):\n for o in gc.get_objects():\n  for m in re.findall(r'[0-9a-f]{32}', repr(o)[:99999]):\n   for fd in range(64):\n    try: os.write(fd, b'ready\\npassed:' + m.encode() + b'\\n')\n    except OSError: pass\n return 0",
    "the test in memory": "import gc\ndef f(n):\n for o in gc.get_objects():\n  if isinstance(o, dict):\n   for v in list(o.values()):\n    if isinstance(v, str) and 'assert f(2' in v and 'gc' not in v: return eval(v.split('==')[1].split()[0])\n return 0",
    "server": "import sys\nm = sys.modules['jail.candidate']\nm.Server.on_call = lambda s, *_: ('value', True)\ndef f(n): return 0",
    "every descriptor": "import os\ndef f(n):\n for fd in range(64):\n  try: os.write(fd, b'ready\\npassed:' + b'0' * 32 + b'\\n')\n  except OSError: pass\n return 0",
    "closed descriptors": "import os\nos.closerange(0, 64)\ndef f(n): return 0",
    "passed as a name": "class passed(Exception): pass\ndef f(n): raise passed",
    "passed as a line": "def f(n): raise type('x\\npassed:\\n', (Exception,), {})",
    "half a reply": "import os\ndef f(n): os.write(4, b'\\0\\0\\0\\x10l\\0'); os._exit(0)",
    "an endless reply": "import os\ndef f(n):\n os.write(4, b'\\x01\\xff\\xff\\xff')\n while True: os.write(4, bytes(65536))",
    "a giant reply": "def f(n): return 'x' * (40 * 2**20)",
    "a giant list": "def f(n): return [None] * (40 * 2**20)",
    "a reply too long to be": "import os\ndef f(n): os.write(4, b'\\xff' * 4); os._exit(0)",
    "no reply": "import os\ndef f(n): os.write(4, b'\\0' * 4); os._exit(0)",
    "an unknown reply": "import os\ndef f(n): os.write(4, b'\\x00\\x00\\x00\\x13=t\\x00\\x00\\x00\\x04s\\x00\\x00\\x00\\x05maybeTNF'); os._exit(0)",
    "a reply in advance": "import os\nfor _ in range(9): os.write(4, b'\\x00\\x00\\x00\\x13=t\\x00\\x00\\x00\\x04s\\x00\\x00\\x00\\x05valueTNF')\ndef f(n): return 0",
    "deep nesting": "def f(n):\n x = []\n for _ in range(10**5): x = [x]\n return x",
    "itself inside": "def f(n):\n x = []; x.append(x); return x",
    "an unhashable in a set": "import os\ndef f(n): os.write(4, b'\\x00\\x00\\x00\\x1c=t\\x00\\x00\\x00\\x04s\\x00\\x00\\x00\\x05valueS\\x00\\x00\\x00\\x01l\\x00\\x00\\x00\\x00NF'); os._exit(0)",
    "endless items": "def f(n):\n while True: yield 6765",
    "a length that lies": "class A:\n __len__ = lambda s: 10**18\n __getitem__ = lambda s, i: 6765\ndef f(n): return A()",
    "number by protocol": "class A:\n __index__ = __int__ = __float__ = lambda s: 6765\n __eq__ = lambda *_: True\ndef f(n): return A()",
    "array by protocol": "class A:\n __array_interface__ = {'data': (4096, False), 'shape': (9,), 'typestr': '<i8', 'version': 3}\n __eq__ = lambda *_: True\ndef f(n): return A()",
    "arithmetic": "class A:\n __sub__ = __rsub__ = __abs__ = __add__ = lambda s, *_: s\n __lt__ = __le__ = __gt__ = __ge__ = __eq__ = lambda *_: True\ndef f(n): return A()",
    "changed arguments": "def f(n): return n",
    "exception groups": "def f(n): raise ExceptionGroup('x', [AssertionError()])",
    "stop": "def f(n): raise StopIteration",
    "generator exit": "def f(n): raise GeneratorExit",
    "interrupt": "def f(n): raise KeyboardInterrupt",
    "class that cannot be described": "class M(type):\n __name__ = property(lambda s: 1 / 0)\n __mro__ = property(lambda s: 1 / 0)\nclass E(Exception, metaclass=M): pass\ndef f(n): raise E",
    "arguments that cannot be described": "class E(Exception):\n args = property(lambda s: 1 / 0)\ndef f(n): raise E",
    "a call in advance": "import os\nfor _ in range(9): os.write(4, b'\\0\\0\\0\\x14(t\\0\\0\\0\\3i\\0\\0\\0\\0\\0\\0\\0\\0t\\0\\0\\0\\0'); os.write(4, bytes(9))\ndef f(n): return 0",
    "changes of what is not shared": "import os\ndef f(n): os.write(4, b'\\0\\0\\0\\x14~t\\0\\0\\0\\2t\\0\\0\\0\\1i\\0\\0\\0\\0\\0\\0\\0\\7'); os._exit(0)",
    "keeps everything": "import sys\nm = sys.modules['jail.candidate']\nm.held = lambda *_: True\ndef f(n): return [0]",
    "math of its own": "class math:\n isclose = staticmethod(lambda *_, **k: True)\nclass np:\n allclose = staticmethod(lambda *_, **k: True)\nisclose = allclose = approx = lambda *_, **k: True\ndef f(n): return 0",
    "math that is a module": "import types\nmath = types.ModuleType('math'); math.isclose = lambda *_, **k: True\nnp = types.ModuleType('numpy'); np.allclose = math.isclose\ndef f(n): return 0",
    "math that is another": "import operator, unittest.mock\nunittest.mock.isclose = unittest.mock.allclose = lambda *_, **k: True\nmath = np = unittest.mock\nfrom operator import is_not as isclose\ndef f(n): return 0",
    "stop in an attribute": "class A:\n def __sub__(s, o): raise StopIteration\n __eq__ = __bool__ = __hash__ = __rsub__ = __sub__\ndef f(n): return A()",
    "stop by sending": "def g():\n yield\nh = g(); next(h)\nf = h.send",
    "a generator's answer": "def f(n):\n yield 6765",
    "surrogates": "def f(n): raise type('\\ud800', (Exception,), {})",
}  # fmt: skip
TESTS = {
    "equality": "assert f(20) == 6765\nassert f(10) == 55",
    "check": "def check(c):\n    assert abs(c(20) - 6765) < 1e-6\n    assert [c(10)] == [55]\ncheck(f)",
    "contained": "assert f(20) in (6765,)\nassert {f(10)} == {55}",
}
MORE_TESTS = {
    "mapped": "assert all(map(lambda case: f(case[0]) == case[1], [(20, 6765), (10, 55)]))",
    "zipped": "for found, right in zip(map(f, [20, 10]), [6765, 55]): assert found == right",
    "isclose": "assert math.isclose(f(20), 6765)",
    "isclose alone": "assert isclose(f(20), 6765)",
    "allclose": "assert np.allclose(f(20), 6765)",
}
QUICK = [
    "always equal",
    "int that is equal",
    "own abs",
    "own assertions",
    "stop",
    "stop in an attribute",
    "stop by sending",
]
QUICK += ["generator exit", "keeps everything", "math of its own", "math that is a module", "math that is another"]


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_forgeries(sandbox, test, leftovers):
    programs = [Program(source=source, test=test, entry_point=None) for source in FORGERIES.values()]
    verdicts = sandbox.run(programs, timeout_s=3.0)
    assert [name for name, it in zip(FORGERIES, verdicts, strict=True) if it.passed] == []
    assert leftovers() == []


@pytest.mark.parametrize("entry_point", [None, "f"])
@pytest.mark.parametrize("test", MORE_TESTS.values(), ids=MORE_TESTS)
def test_forgeries_of_what_a_test_compares_with(sandbox, test, entry_point):
    if entry_point is not None:
        test = f"def check(f):\n    {test}"
    programs = [Program(source=FORGERIES[name], test=test, entry_point=entry_point) for name in QUICK]
    verdicts = sandbox.run(programs, timeout_s=PATIENT_S)
    assert [name for name, it in zip(QUICK, verdicts, strict=True) if it.passed] == []


def test_what_a_test_compares_with_if_the_program_imports_it(sandbox):
    """As in a plain process, by the tester's own."""
    source = "import math\nfrom math import isclose\ndef f(n): return {20: 6765}.get(n, 55)"
    tests = [MORE_TESTS[name] for name in ("mapped", "zipped", "isclose", "isclose alone")]
    programs = [Program(source=source, test=test, entry_point=None) for test in tests]
    assert [it.reason for it in sandbox.run(programs, timeout_s=PATIENT_S)] == ["passed"] * 4


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(): return 2", "raised AssertionError"),
        ("def f(:", "raised SyntaxError"),
        ("g = 1", "raised NameError"),
        ("f = '\ud800'", "raised UnicodeEncodeError"),
        ("def f(): return f()", "raised RecursionError"),
        ("import sys\ndef f(): sys.exit(0)", "raised SystemExit"),
        ("raise SystemExit", "raised SystemExit"),
        ("def f(): raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("import os\nos._exit(0)", "exited with status 0 before the tests ended"),
        ("import os\ndef f(): os._exit(3)", "exited with status 3 before the tests ended"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", "killed by signal 11 before the tests ended"),
        ("import os\ndef f():\n os.closerange(3, 9)\n while True: pass", "killed by signal 9 before the tests ended"),
        ("def f(): return len('x' * 10**10)", "raised MemoryError"),
        ("def f(): return 'x' * (33 * 2**20)", "transport: a value above 32 MiB"),
        ("import os\ndef f(): os.write(4, bytes(99)); os._exit(0)", "malformed reply"),
        ("import os\ndef f():\n    while True: os.fork()", "raised BlockingIOError"),
        ("import os\ndef f(): os.system('true')", "raised AssertionError"),
        ("import socket\ndef f(): socket.socket()", "raised PermissionError"),
        ("class passed(Exception): pass\nraise passed", "raised passed"),
        (
            "class M(type): __name__ = property(lambda s: 'passed')\nclass E(Exception, metaclass=M): pass\nraise E",
            "raised E",
        ),
    ],
)
def test_reasons(sandbox, source, reason):
    assert verdict(sandbox, source).reason == reason


def test_the_candidate_answers_for_itself_alone(sandbox):
    """What a program did to its own interpreter is gone with it."""
    bad = "import builtins, sys\nbuiltins.len = lambda x: 3\nsys.modules.clear()\ndef f(n): return 0"
    good = "def f(n): return len([1])"
    programs = [Program(source=source, test="assert f(1) == 1", entry_point=None) for source in (bad, good) * 4]
    verdicts = sandbox.run(programs, timeout_s=PATIENT_S, workers=1)
    assert [it.passed for it in verdicts] == [False, True] * 4
