"""mini_humaneval: complete a small Python function from its docstring; graded by assertions, as HumanEval is."""

from __future__ import annotations

from random import Random
from typing import Any

from lynx_exp.tasks.mini.item import Item

NAMES = ["f", "solve", "calc", "process", "compute", "run_it", "helper", "task", "transform", "apply"]
LIST_NAMES = ["nums", "xs", "values", "items", "data", "arr"]
INT_NAMES = ["x", "n", "k", "a", "num", "value"]
STR_NAMES = ["s", "text", "word", "line"]
LETTERS = "abcdestx"
CHECKS = 8
"""Assertions per function: few enough to keep rows small, enough that a wrong constant is caught."""

# Stages of a list function: filter, map, sort, take, aggregate.
PIPELINES = ["fa", "ma", "fma", "fma", "mfa", "st", "fm", "fs", "mfs"]


def _list_stage(rng: Random, stage: str, source: str, bound: int, n: int) -> tuple[str, str]:
    """One stage as (English, Python statement); `source` is the variable it reads."""
    if stage == "f":
        text, test = rng.choice(
            [
                (f"greater than {bound}", f"v > {bound}"),
                (f"less than {bound}", f"v < {bound}"),
                ("that are even", "v % 2 == 0"),
                ("that are odd", "v % 2 == 1"),
                (f"not equal to {bound}", f"v != {bound}"),
            ]
        )
        return f"keep the elements {text}", f"r = [v for v in {source} if {test}]"
    if stage == "m":
        text, value = rng.choice(
            [
                (f"add {n} to each", f"v + {n}"),
                (f"multiply each by {n}", f"v * {n}"),
                (f"subtract {n} from each", f"v - {n}"),
                ("square each", "v * v"),
                ("negate each", "-v"),
            ]
        )
        return text, f"r = [{value} for v in {source}]"
    if stage == "s":
        text, code = rng.choice(
            [
                ("sort them", f"sorted({source})"),
                ("sort them in descending order", f"sorted({source}, reverse=True)"),
                ("reverse them", f"{source}[::-1]"),
            ]
        )
        return text, f"r = {code}"
    if stage == "t":
        text, code = rng.choice(
            [(f"take the first {n}", f"[:{n}]"), (f"take the last {n}", f"[-{n}:]"), (f"drop the first {n}", f"[{n}:]")]
        )
        return text, f"r = {source}{code}"
    text, code = rng.choice(
        [
            ("return the sum", f"sum({source})"),
            ("return the count", f"len({source})"),
            ("return the maximum or 0", f"max({source}, default=0)"),
            ("return the minimum or 0", f"min({source}, default=0)"),
        ]
    )
    return text, f"return {code}"


def _list_function(rng: Random) -> tuple[str, str, list[str], str]:
    argument, bound, n = rng.choice(LIST_NAMES), rng.randint(2, 12), rng.randint(2, 9)
    stages = rng.choice(PIPELINES)
    texts, lines, source = [], [], argument
    for stage in stages:
        text, line = _list_stage(rng, stage, source, bound, n)
        texts.append(text)
        lines.append(line)
        source = "r"
    if stages[-1] != "a":
        texts.append("return the list")
        lines.append("return r")
    return argument, f"Given the list {argument}, {', then '.join(texts)}.", lines, "list"


def _int_expression(rng: Random, var: str, pair: tuple[str, str] | None) -> tuple[str, str]:
    d = rng.randint(2, 15)
    choices = [
        (f"{var} plus {d}", f"{var} + {d}"),
        (f"{var} minus {d}", f"{var} - {d}"),
        (f"{var} times {d}", f"{var} * {d}"),
        (f"{d} minus {var}", f"{d} - {var}"),
        (f"the square of {var}", f"{var} * {var}"),
        (f"the remainder of {var} divided by {d}", f"{var} % {d}"),
        (f"{var} divided by {d} rounded down", f"{var} // {d}"),
    ]
    if pair:
        a, b = pair
        choices += 2 * [
            (f"{a} plus {b}", f"{a} + {b}"),
            (f"{a} times {b}", f"{a} * {b}"),
            (f"the larger of {a} and {b}", f"max({a}, {b})"),
            (f"the smaller of {a} and {b}", f"min({a}, {b})"),
            (f"{b} minus {a}", f"{b} - {a}"),
        ]
    return rng.choice(choices)


def _int_function(rng: Random) -> tuple[str, str, list[str], str]:
    a, b = rng.sample(INT_NAMES, 2)
    two = rng.random() < 0.5
    pair = (a, b) if two else None
    then, otherwise = _int_expression(rng, a, pair), _int_expression(rng, b if two else a, pair)
    c, var = rng.randint(2, 15), rng.choice([a, b]) if two else a
    condition, test = rng.choice(
        [
            (f"{var} is greater than {c}", f"{var} > {c}"),
            (f"{var} is less than {c}", f"{var} < {c}"),
            (f"{var} is even", f"{var} % 2 == 0"),
            (f"{var} is odd", f"{var} % 2 == 1"),
            (f"{var} is equal to {c}", f"{var} == {c}"),
        ]
    )
    shape = rng.random()
    if shape < 0.55:
        doc = f"If {condition}, return {then[0]}, otherwise return {otherwise[0]}."
        lines = [f"if {test}:", f"    return {then[1]}", f"return {otherwise[1]}"]
    elif shape < 0.8:
        n = rng.randint(2, 9)
        text, op = rng.choice([("multiply it by", "*"), ("add", "+"), ("subtract", "-")])
        doc = f"Compute {then[0]}, then {text} {n}, and return the result."
        lines = [f"r = {then[1]}", f"return r {op} {n}"]
    else:
        doc, lines = f"Return True if {condition}, otherwise return False.", [f"return {test}"]
    return (f"{a}, {b}" if two else a), doc, lines, "int"


def _str_function(rng: Random) -> tuple[str, str, list[str], str]:
    argument, n = rng.choice(STR_NAMES), rng.randint(2, 6)
    p, q = rng.sample(LETTERS, 2)
    texts, lines, source = [], [], argument
    for _ in range(rng.randint(1, 3)):
        text, code = rng.choice(
            [
                ("convert it to upper case", f"{source}.upper()"),
                ("reverse it", f"{source}[::-1]"),
                (f"repeat it {n} times", f"{source} * {n}"),
                (f"replace every '{p}' by '{q}'", f"{source}.replace('{p}', '{q}')"),
                (f"take the first {n} letters", f"{source}[:{n}]"),
                (f"remove every '{q}'", f"{source}.replace('{q}', '')"),
                ("add an exclamation mark", f"{source} + '!'"),
            ]
        )
        texts.append(text)
        lines.append(f"r = {code}")
        source = "r"
    length = rng.random() < 0.35
    texts.append("return the length" if length else "return the result")
    lines.append("return len(r)" if length else "return r")
    return argument, f"Given the string {argument}, {', then '.join(texts)}.", lines, "str"


def _argument(rng: Random, kind: str) -> object:
    if kind == "list":
        return [rng.randint(0, 16) for _ in range(rng.randint(0, 12))]
    if kind == "int":
        return rng.randint(0, 20)
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(0, 10)))


def sample(rng: Random) -> Item:
    kind = rng.random()
    build = _list_function if kind < 0.45 else _int_function if kind < 0.8 else _str_function
    arguments, docstring, lines, kind_of_argument = build(rng)
    name = rng.choice(NAMES)
    prompt = f'def {name}({arguments}):\n    """{docstring}"""\n'
    body = "".join(f"    {line}\n" for line in lines)
    doc = {"prompt": prompt, "canonical_solution": body, "entry_point": name, "argument": kind_of_argument}
    return Item(prompt=prompt, answer=body, doc=dict(doc))


def with_test(item: Item, rng: Random) -> Item:
    """The item with HumanEval's `test` field: assertions on random arguments, results of the gold solution."""
    namespace: dict[str, Any] = {}
    exec(item.prompt + item.answer, namespace)  # our own generated gold solution, never a model's
    function, kind = namespace[str(item.doc["entry_point"])], str(item.doc["argument"])
    arity = function.__code__.co_argcount
    lines = ["def check(candidate):"]
    for _ in range(CHECKS):
        arguments = [_argument(rng, kind) for _ in range(arity)]
        call = ", ".join(map(repr, arguments))
        lines.append(f"    assert candidate({call}) == {function(*arguments)!r}")
    return Item(prompt=item.prompt, answer=item.answer, doc=item.doc | {"test": "\n".join(lines) + "\n"})
