"""Containers of two sides: who holds them, what is told of their changes."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.tasks.sandbox.jail import wire
from lynx_exp.tasks.sandbox.jail.candidate import Server
from lynx_exp.tasks.sandbox.jail.codec import decode, encode
from lynx_exp.tasks.sandbox.jail.shared_containers import Shared, fill, held, kind_of

TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(), inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


def copied(value: object) -> object:
    """So that only the copy refers to what is in it."""
    return decode(encode(value), noted=[])


@given(TREES)
def test_nobody_holds_what_is_only_here(tree):
    box = [copied(tree)]
    assert not held((), box)
    arguments = [copied([tree])]
    assert not held((), [arguments[0]], arguments)


@given(TREES, st.data())
def test_somebody_holds_a_part(tree, data):
    box: list[Any] = [copied([tree, [0]])]
    parts = [box[0]]
    for part in parts:
        inner = part.values() if isinstance(part, dict) else part
        parts += [it for it in inner if isinstance(it, (list, dict))]
        parts += [it for pair in inner if isinstance(pair, tuple) for it in pair if isinstance(it, (list, dict))]
    mine = data.draw(st.sampled_from(parts))
    del parts, part, inner
    assert held((), box)
    assert not held({id(it) for it in (box[0], mine)}, [mine])


class Side:
    def __init__(self) -> None:
        self.shared = Shared()

    def encode(self, content: object, noted: list) -> bytes:
        return encode(content, numbers=self.shared.tags(), noted=noted)

    def tell(self, other: Side) -> None:
        told = self.shared.changes(self.encode)
        if told is None:
            return
        noted: list = []
        data = self.encode(told, noted)
        self.shared.settle(*told, noted, self.encode)
        arrived: list = []
        gone, changed = decode(data, lambda tag, number: other.shared.containers[number], arrived)
        other.shared.take_over(changed)
        other.shared.settle(gone, changed, arrived, other.encode)


def pair(value: list) -> tuple[Side, Side, list]:
    here, there = Side(), Side()
    noted: list = []
    arrived: list = []
    other = decode(encode(value, numbers={}, noted=noted), noted=arrived)
    here.shared.enter(noted, here.encode)
    there.shared.enter(arrived, there.encode)
    return here, there, other


def test_changes_arrive():
    mine: list[Any] = [[1], {2: [3]}]
    here, there, other = pair(mine)
    mine[0].append(5)
    mine[1][2] = mine[0]
    mine.append([7])
    here.tell(there)
    assert other == [[1, 5], {2: [1, 5]}, [7]] and other[1][2] is other[0]
    other[2].append(8)
    other[0].clear()
    there.tell(here)
    assert mine == [[], {2: []}, [7, 8]]
    assert here.shared.changes(here.encode) is None


def test_what_one_side_has_let_go_both_forget():
    mine = [[1], [2]]
    here, there, other = pair(mine)
    del other
    there.tell(here)
    there.tell(here)
    assert here.shared.containers == there.shared.containers == {}


def test_a_change_is_told_of_what_is_let_go():
    mine = [1]
    here, there, other = pair(mine)
    other.append(2)
    del other
    there.tell(here)
    assert mine == [1, 2] and not here.shared.containers


@pytest.mark.parametrize(
    ("container", "content"),
    [
        ([1], [2, 3]),
        ({1}, {2}),
        ({1: 2}, {3: 4}),
        (deque([1]), deque([2])),
        (bytearray(b"a"), bytearray(b"bc")),
        (OrderedDict(a=1), OrderedDict(b=2)),
    ],
)
def test_filled_in_place(container, content):
    fill(container, kind_of(container), content)
    assert container == content
    with pytest.raises(ValueError, match="kind"):
        fill(container, kind_of(container), 5)


def test_a_question_that_cannot_be_decoded_has_an_answer_that_can():
    """Its containers are not finished; none of them is named in the answer."""
    replies, end = os.pipe()
    question = encode(("call", [[1, 2], len]), lambda _: (b"k", 77))  # 77: a function that was never told of
    Server(-1, end).respond(wire.QUESTION + question)
    kind, why, contents, keep = decode(wire.receive(replies)[1:], noted=[])
    assert (kind, contents, keep) == ("untransportable", None, False) and why.startswith("malformed")
    os.close(replies)
    os.close(end)


def test_arrays_are_filled_within_their_memory():
    """Another size would leave views of them on memory that is gone."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(4)
    fill(array, kind_of(array), numpy.array([[5, 6], [7, 8]]))
    assert array.tolist() == [[5, 6], [7, 8]]
    for content in (numpy.arange(5), numpy.arange(4.0)):
        with pytest.raises(ValueError, match=r"reshape|another type"):
            fill(array, kind_of(array), content)
