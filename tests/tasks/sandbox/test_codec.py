"""Plain data goes through the pipe as it is, and nothing else comes out of it."""

from __future__ import annotations

import re
import struct
from collections import Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.tasks.sandbox.jail.codec import MAX_DEPTH, CodecError, decode, encode


def has_hash(number: Decimal) -> bool:
    return not number.is_snan()


SURROGATES = st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010))
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | SURROGATES
    | st.binary()
    | st.builds(range, st.integers(), st.integers(), st.integers(1))
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
    | st.fractions()
    | st.decimals().filter(has_hash)
)
HASHABLE = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(inner, max_size=3).map(frozenset)
)
PLAIN = st.recursive(
    HASHABLE | st.decimals() | st.binary().map(bytearray) | st.lists(st.integers()) | st.lists(st.floats()).map(tuple),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.lists(st.tuples(HASHABLE, inner), max_size=4).map(dict)
        | st.lists(HASHABLE, max_size=4).map(set)
    ),
    max_leaves=20,
)
EXACT = {
    *(type(None), bool, int, float, complex, str, bytes, bytearray, range, list, tuple, dict, set, frozenset, deque),
    *(date, datetime, time, timedelta, timezone, Decimal, Fraction, slice, type(Ellipsis), type(NotImplemented), type),
    *(Counter, OrderedDict, defaultdict, UserDict, UserList, UserString),
    *map(type, ({}.keys(), {}.items(), {}.values())),
}


def picture(value: Any) -> object:
    """`value` as something that differs wherever types or bits do."""
    kind = type(value)
    assert kind in EXACT
    if kind is float:
        return kind, struct.pack("d", value)
    if kind is complex:
        return kind, struct.pack("dd", value.real, value.imag)
    if kind is dict:
        return kind, [(picture(key), picture(item)) for key, item in value.items()]
    if kind in (set, frozenset):
        return kind, sorted(map(repr, map(picture, value)))
    if kind in (list, tuple, deque):
        return kind, getattr(value, "maxlen", None), [picture(item) for item in value]
    return kind, str(value) if kind is not str else value


@given(PLAIN)
def test_round_trip(value):
    assert picture(decode(encode(value))) == picture(value)


@given(st.binary())
def test_no_other_bytes(data):
    """What is accepted is plain, and goes through again as it is."""
    try:
        value = decode(data)
    except CodecError:
        return
    assert picture(decode(encode(value))) == picture(value)


@given(PLAIN, st.data())
def test_damaged_bytes(value, data):
    """Bytes close to good ones: cut off, continued or changed."""
    whole = bytearray(encode(value))
    where = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:where], whole + b"N", whole[:where] + data.draw(st.binary(max_size=9)) + whole[where + 1 :]):
        test_no_other_bytes.hypothesis.inner_test(bytes(damaged))  # type: ignore[attr-defined]


class Liar(int):
    __eq__ = lambda *_: True  # noqa: E731
    __hash__ = int.__hash__


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Liar(7), 7),
        ([Liar(7), 8], [7, 8]),
        ((Liar(2**70),), (2**70,)),
        ([type("S", (str,), {"encode": None})("ä")], ["ä"]),
        (type("F", (float,), {"__float__": lambda _: 1.0})(2.5), 2.5),
    ],
)
def test_subclasses_are_what_they_derive_from(value, plain):
    assert picture(decode(encode(value))) == picture(plain)


@pytest.mark.parametrize("value", [object(), print, type("C", (), {}), [lambda: 0], {"x": object()}, re.compile("a")])
def test_not_plain(value):
    with pytest.raises(CodecError):
        encode(value)


EAST = timezone(timedelta(hours=2), "EAST")


@pytest.mark.parametrize(
    "value",
    [
        Counter("aab"),
        OrderedDict(x=[1]),
        defaultdict(list, {1: [2]}),
        UserList([1, [2]]),
        UserDict({"a": 1}),
        UserString("ab"),
        time(1, 2, 3, 4, fold=1),
        time(1, tzinfo=EAST),
        datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=EAST),
        datetime(2024, 5, 6, tzinfo=UTC),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        EAST,
        {1: 2}.keys(),
        {1: 2}.items(),
        OrderedDict(a=1).keys(),
        slice(1, None, "x"),
        Ellipsis,
        NotImplemented,
        int,
        {int: [str, ValueError, type(None)], "of": type},
    ],
)
def test_values_that_are_what_they_are(value):
    there = decode(encode([value, value]))
    assert there == [value, value]
    assert isinstance(there[0], type(value)) or type(value).__name__.startswith("odict")
    if isinstance(value, (time, datetime)):
        assert (there[0].utcoffset(), there[0].tzname(), there[0].fold) == (
            value.utcoffset(),
            value.tzname(),
            value.fold,
        )


def test_values_of_a_view():
    assert list(decode(encode({1: [2], 3: [2]}.values()))) == [[2], [2]]


def test_numpy_at_any_depth():
    numpy = pytest.importorskip("numpy")
    for kind in (
        "int8",
        "uint64",
        "float16",
        "float32",
        "float64",
        "longdouble",
        "complex64",
        "bool_",
        "str_",
    ):
        number = getattr(numpy, kind)(1)
        [(there, [again])] = decode(encode([(number, [number])]))
        assert type(there) is type(again) is type(number) and there == number
        assert decode(encode(getattr(numpy, kind))) is getattr(numpy, kind)
    moments = numpy.array(["2024-01-01", "NaT"], dtype="M8[D]")
    for array in (
        numpy.arange(6).reshape(2, 3).T,
        moments,
        numpy.array(["ab", ""]),
        numpy.zeros((0, 2)),
        numpy.array(3.5),
    ):
        there = decode(encode({"a": array}))["a"]
        assert there.dtype == array.dtype and there.shape == array.shape and there.flags.writeable
        numpy.testing.assert_array_equal(there, array)
    mixed = decode(encode(numpy.array([None, [1], "a"], dtype=object)))
    assert mixed.tolist() == [None, [1], "a"]
    with pytest.raises(CodecError):
        encode(numpy.ma.masked_array([1], [True]))


@pytest.mark.parametrize(
    "parts",
    [
        ["number", "<i8", b"1"],
        ["numpy type", "load"],
        ["type", "os.system"],
        ["datetime", 1],
        ["made up"],
    ],
)
def test_parts_that_no_encoder_writes(parts):
    data = encode(parts)
    with pytest.raises(CodecError):
        decode(b"x" + data[1:])


@pytest.mark.parametrize(
    "parts",
    [
        ["O", b"12345678", 1],
        ["<i8", b"12345678", 2],
        ["<i8", b"", -1, 0],
        ["V8", b"12345678", 1],
        ["<i8", b"12345678", "1"],
        [],
    ],
)
def test_arrays_that_no_encoder_writes(parts):
    pytest.importorskip("numpy")
    with pytest.raises(CodecError):
        decode(b"A" + encode(parts)[1:])


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_depth():
    assert decode(encode(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(CodecError):
        encode(nested(MAX_DEPTH + 1))
    with pytest.raises(CodecError):
        decode(b"l\0\0\0\1" * 10**6 + b"N")


@pytest.mark.parametrize("tag", [b"l", b"t", b"S", b"Z", b"m", b"D", b"s", b"b", b"B", b"I", b"q", b"G"])
def test_a_length_that_is_not_there(tag):
    with pytest.raises(CodecError):
        decode(tag + b"\xff\xff\xff\xff")


def test_arguments_keep_their_identity():
    shared = [1]
    noted: list = []
    data = encode(([shared, shared], {"x": shared}), numbers={}, noted=noted)
    there: list = []
    (first, mapping) = decode(data, noted=there)
    assert first[0] is first[1] is mapping["x"]
    assert there == noted == [[shared, shared], shared, {"x": shared}]
    assert (
        decode(encode(first[0], numbers={id(it): n for n, it in enumerate(there)}), lambda tag, n: noted[n]) is shared
    )


def test_a_container_that_holds_itself():
    loop: list = [[]]
    loop[0].append(loop)
    with pytest.raises(CodecError):
        encode(loop, numbers={}, noted=[])
    with pytest.raises(CodecError):
        decode(b"l\0\0\0\1o" + bytes(8), noted=[])


def test_an_array_keeps_its_identity():
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(3)
    there: list = []
    first, second = decode(encode([array, array], numbers={}, noted=[]), noted=there)
    assert first is second is there[1]
