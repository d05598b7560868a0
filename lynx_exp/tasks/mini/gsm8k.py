"""mini_gsm8k: word problems of two to five arithmetic steps, answered by a chain of equations and `#### n`, as GSM8K
is."""

from __future__ import annotations

from random import Random

from lynx_exp.tasks.mini.item import Item

PEOPLE = {
    "he": ["Tom", "Ben", "Leo", "Max", "Paul", "Omar", "Ivan"],
    "she": ["Anna", "Mia", "Sara", "Nina", "Lena", "Ruth", "Kate"],
}
PRONOUN = {name: pronoun for pronoun, names in PEOPLE.items() for name in names}
THINGS = [
    "apples",
    "books",
    "coins",
    "pens",
    "cards",
    "stamps",
    "shells",
    "cookies",
    "marbles",
    "eggs",
    "balloons",
    "stickers",
]
PLACES = ["at the market", "in the park", "at school", "in the garden", "on the way home", "at the fair"]
GAINS = [
    "buys {n} more {thing}",
    "finds {n} {thing} {place}",
    "gets {n} {thing} from {other}",
    "wins {n} {thing} {place}",
]
LOSSES = [
    "gives {n} {thing} to {other}",
    "loses {n} {thing} {place}",
    "sells {n} {thing} {place}",
    "leaves {n} {thing} {place}",
]


def _opening(rng: Random, hero: str, other: str, thing: str) -> tuple[list[str], list[str], int]:
    """How many things the hero starts with: told outright, as boxes times contents, or relative to somebody else."""
    kind = rng.random()
    if kind < 0.55:
        count = rng.randint(3, 25)
        return [f"{hero} has {count} {thing}."], [], count
    if kind < 0.8:
        boxes, each = rng.randint(2, 9), rng.randint(2, 6)
        container = rng.choice(["boxes", "bags", "jars"])
        count = boxes * each
        return [f"{hero} has {boxes} {container} with {each} {thing} in each."], [f"{boxes} * {each} = {count}"], count
    theirs, more = rng.randint(3, 20), rng.randint(1, 9)
    count = theirs + more
    told = f"{other} has {theirs} {thing}. {hero} has {more} more {thing} than {other}."
    return [told], [f"{theirs} + {more} = {count}"], count


def sample(rng: Random) -> Item:
    hero, other = rng.sample(list(PRONOUN), 2)
    he, thing = PRONOUN[hero], rng.choice(THINGS)
    sentences, steps, count = _opening(rng, hero, other, thing)

    for _ in range(rng.randint(1, 2 if steps else 3)):
        gains = rng.random() < 0.5 or count < 4
        n = rng.randint(1, 12 if gains else min(12, count - 1))
        event = rng.choice(GAINS if gains else LOSSES).format(
            n=n, thing=thing, place=rng.choice(PLACES), other=rng.choice([p for p in PRONOUN if p != hero])
        )
        subject = rng.choice([he.capitalize(), f"Then {he}", hero, f"Later {he}"])
        sentences.append(f"{subject} {event}.")
        after = count + n if gains else count - n
        steps.append(f"{count} {'+' if gains else '-'} {n} = {after}")
        count = after
    if count <= 40 and rng.random() < 0.2:
        sentences.append(f"Then {he} doubles the number of {thing}.")
        steps.append(f"{count} * 2 = {count * 2}")
        count *= 2
    if rng.random() < 0.25:  # a sentence that must be ignored
        bystander = rng.choice([p for p in PRONOUN if p != hero])
        unrelated = rng.choice([t for t in THINGS if t != thing])
        sentences.insert(rng.randint(1, len(sentences)), f"{bystander} has {rng.randint(2, 20)} {unrelated}.")

    ending = rng.choice(["now", "in the end"])
    question = f"{' '.join(sentences)} How many {thing} does {hero} have {ending}?"
    answer = f"{'. '.join(steps)}.\n#### {count}"
    return Item(
        prompt=f"Question: {question}\nAnswer:", answer=f" {answer}", doc={"question": question, "answer": answer}
    )
