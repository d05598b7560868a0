"""A safe serialisation of plain Python data, used between the two processes that judge generated code.

The tester runs the task's tests, and the candidate runs the code that a model wrote. Unlike pickle, no message can make
the receiver run code. Encoding reduces a subclass of a builtin type (namedtuple, IntEnum, ...) to the content that the
builtin type sees, so that its own `__eq__`, `__hash__` or `__repr__` never reaches the other side. Decoding creates
exact builtin types only and checks every length. Objects that are not plain data travel as references. A value is a
tag of one byte and its content: a number of fixed size, or a 4-byte count with that many bytes or values.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from operator import is_
from typing import NoReturn, TypeAlias

from . import values
from .values import Value

MAX_DEPTH = 200
"""Nesting of containers. Both sides refuse deeper data, long before Python's recursion limit."""

INT64 = range(-(2**63), 2**63)
CONSTANTS = {b"N": None, b"T": True, b"F": False}
SEQUENCES: dict[bytes, type] = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}
PACKED: dict[bytes, tuple[type, str]] = {b"q": (list, "q"), b"Q": (tuple, "q"), b"f": (list, "d"), b"G": (tuple, "d")}
"""Compact forms of lists and tuples of 64-bit ints or of floats: container type, and type code of `array`."""
PACKED_TAGS: dict[tuple[type, type], bytes] = {
    (kind, int if code == "q" else float): tag for tag, (kind, code) in PACKED.items()
}
REFERENCES = b"h", b"k", b"o", b"w"
"""References by number: to an object of the candidate; to one of the tester; to a mutable container of this message or
of the call; to a container that both sides share."""
DESCRIBED = b"H", b"u", b"X", b"E", b"K"
"""First mentions of an object, with a description that begins with its number. From the candidate: an object of one of
its classes; one that derives from plain data, with that data. From both: an exception class; an exception. From the
tester: a function."""
MIRRORED = int, float, complex, str, bytes, bytearray, tuple, frozenset, list, dict, set, deque
"""Builtin types whose subclasses keep their identity: the copy on the other side knows the candidate's object."""
MUTABLE = list, dict, set, bytearray, deque
MUTABLE_TAGS = b"l", b"m", b"M", b"S", b"B", b"D", b"q", b"f", b"A"

Reference: TypeAlias = tuple[bytes, int | list[object]]
"""A tag of `REFERENCES` with a number, or a tag of `DESCRIBED` with the parts of the description."""
Refer = Callable[[object], Reference]
Resolve = Callable[[bytes, int | list[object] | None], object]
"""Gives the object for a reference. None in place of a number reports a set whose order differs between the sides."""
Mirror = Callable[[object, type], list[object]]


class CodecError(Exception):
    """A value that cannot be encoded, or bytes that the encoder would not have written."""


def no_references(*_: object) -> NoReturn:
    raise CodecError("not plain data")


def encode(
    value: object,
    refer: Refer = no_references,
    numbers: dict[int, int] | None = None,
    noted: list[object] | None = None,
    mirror: Mirror | None = None,
) -> bytes:
    """Encode a value as bytes.

    Args:
        value: Plain data, or anything that `refer` accepts.
        refer: Gives the reference for an object that is not plain data, or raises CodecError.
        numbers: By id(), objects that are encoded as references; a number `~n` means shared container n.
        noted: Receives the mutable containers in order of appearance. They also enter `numbers`, so that a second
            appearance is a reference; the decoder numbers them in the same way.
        mirror: Describes objects that derive from plain data; None encodes them as that data alone.

    Raises:
        CodecError: The value cannot be encoded.
    """
    out: list[bytes] = []
    Encoder(out.append, refer, {} if numbers is None else numbers, noted, mirror).put(value, 0)
    return b"".join(out)


class Encoder:
    def __init__(
        self,
        write: Callable[[bytes], object],
        refer: Refer,
        numbers: dict[int, int],
        noted: list[object] | None,
        mirror: Mirror | None,
    ) -> None:
        self.write, self.refer, self.numbers, self.noted, self.mirror = write, refer, numbers, noted, mirror
        self.unfinished: set[int] = set()  # containers whose items are being written: a reference would be a cycle

    def put(self, value: object, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise CodecError("nested too deeply")
        if (known := self.numbers.get(id(value))) is not None:
            if known in self.unfinished:
                raise CodecError("a container that holds itself")
            self.write(b"o" + struct.pack(">Q", known) if known >= 0 else b"w" + struct.pack(">Q", ~known))
            return
        kind = type(value)
        method = WRITERS.get(kind)
        if method is None:
            if "_remote_number" in kind.__dict__:  # a copy of a candidate's object goes back as that object
                self.reference(value, depth)
                return
            if (parts := named_parts(value)) is not None:
                self.items(b"x", parts, depth)
                return
            if values.is_array(value):
                self.note(value)
                self.items(b"A", [value.dtype.str, value.tobytes(), *value.shape], depth)
                return
            # not kind.__mro__, which a metaclass could define
            base = next((base for base in type.__dict__["__mro__"].__get__(kind) if base in WRITERS), None)
            if base is None:
                self.reference(value, depth)
                return
            method = WRITERS[base]
            if self.mirror is not None and base in MIRRORED:
                parts = self.mirror(value, base)
                self.write(b"u" + struct.pack(">I", len(parts) + 1))
                for part in parts:
                    self.put(part, depth + 1)
                method(self, value, depth + 1)
                return
        if self.noted is None or not isinstance(value, MUTABLE):
            method(self, value, depth)
            return
        number = self.note(value)
        self.unfinished.add(number)
        method(self, value, depth)
        self.unfinished.discard(number)

    def note(self, value: object) -> int:
        if self.noted is None:
            return 0
        number = self.numbers[id(value)] = len(self.noted)
        self.noted.append(value)
        return number

    def reference(self, value: object, depth: int) -> None:
        tag, target = self.refer(value)
        if isinstance(target, int):
            self.write(tag + struct.pack(">Q", target))
        else:
            self.items(tag, target, depth)

    def constant(self, value: object, depth: int) -> None:
        self.write(b"N" if value is None else b"T" if value else b"F")

    def integer(self, value: int, depth: int) -> None:
        value = int.__index__(value)
        if value in INT64:
            self.write(b"i" + struct.pack(">q", value))
        else:
            self.sized(b"I", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))

    def real(self, value: float, depth: int) -> None:
        self.write(b"d" + struct.pack(">d", float.__float__(value)))

    def complex_number(self, value: complex, depth: int) -> None:
        value = complex.__complex__(value)
        self.write(b"c" + struct.pack(">dd", value.real, value.imag))

    def text(self, value: str, depth: int) -> None:
        self.sized(b"s", str.encode(value, "utf-8", "surrogatepass"))

    def binary(self, value: bytes, depth: int) -> None:
        self.sized(b"b", bytes.__getitem__(value, slice(None)))

    def mutable_binary(self, value: bytearray, depth: int) -> None:
        self.sized(b"B", bytes(bytearray.__getitem__(value, slice(None))))

    def sequence(self, value: list[Value] | tuple[Value, ...], depth: int) -> None:
        kind: type
        if isinstance(value, list):
            kind, items = list, list(list.__iter__(value))
        else:
            kind, items = tuple, list(tuple.__iter__(value))
        types = set(map(type, items))
        if len(types) == 1 and (tag := PACKED_TAGS.get((kind, types.pop()))) is not None:
            try:
                packed = array(PACKED[tag][1], items)
            except OverflowError:
                pass  # an int beyond 64 bits
            else:
                self.sized(tag, packed.tobytes())
                return
        self.items(b"l" if kind is list else b"t", items, depth)

    def plain_set(self, value: set[object] | frozenset[object], depth: int) -> None:
        if isinstance(value, set):
            self.items(b"S", list(set.__iter__(value)), depth)
        else:
            self.items(b"Z", list(frozenset.__iter__(value)), depth)

    def mapping(self, value: dict[object, object], depth: int) -> None:
        self.items(b"m", [part for pair in dict.items(value) for part in pair], depth)

    def span(self, value: range, depth: int) -> None:
        self.items(b"r", [value.start, value.stop, value.step], depth)

    def queue(self, value: deque[object], depth: int) -> None:
        self.items(b"D", [value.maxlen, *deque.__iter__(value)], depth)

    def kept_mapping(self, value: Value, depth: int) -> None:
        name = next(name for name, kind in values.MAPPINGS.items() if isinstance(value, kind))
        made_by = value.default_factory if name == "defaultdict" else None
        pairs = (OrderedDict if name == "OrderedDict" else dict).items(value)  # move_to_end orders the first
        self.items(b"M", [name, made_by, *(part for pair in pairs for part in pair)], depth)

    def by_name(self, value: object, depth: int) -> None:
        kind = next(base for base in type(value).__mro__ if base in values.TO_PARTS)
        self.items(b"x", values.TO_PARTS[kind](value), depth)

    def sized(self, tag: bytes, content: bytes) -> None:
        self.write(tag + struct.pack(">I", len(content)))
        self.write(content)

    def items(self, tag: bytes, items: Sequence[object], depth: int) -> None:
        self.write(tag + struct.pack(">I", len(items)))
        for item in items:
            self.put(item, depth + 1)


WRITERS: dict[type, Callable[[Encoder, Value, int], None]] = {
    type(None): Encoder.constant,
    bool: Encoder.constant,
    int: Encoder.integer,
    float: Encoder.real,
    complex: Encoder.complex_number,
    str: Encoder.text,
    bytes: Encoder.binary,
    bytearray: Encoder.mutable_binary,
    list: Encoder.sequence,
    tuple: Encoder.sequence,
    set: Encoder.plain_set,
    frozenset: Encoder.plain_set,
    dict: Encoder.mapping,
    range: Encoder.span,
    deque: Encoder.queue,
    **dict.fromkeys((Counter, OrderedDict, defaultdict), Encoder.kept_mapping),
    **dict.fromkeys(values.TO_PARTS, Encoder.by_name),
}


def named_parts(value: object) -> list[object] | None:
    """The name and parts by which both sides know a class or a NumPy scalar; None for any other value."""
    if isinstance(value, type):
        name = f"{value.__module__}.{value.__name__}"
        if values.TYPES.get(name) is value:
            return ["type", name]
    return values.numpy_parts(value)


def decode(data: bytes, resolve: Resolve = no_references, noted: list[object] | None = None, start: int = 0) -> Value:
    """Decode a value, to exact builtin types except for what `resolve` returns.

    Args:
        data: A message.
        resolve: Gives the object for a reference. With `noted`, it is also called with a set's tag and None for a set
            whose order of iteration differs from the sender's.
        noted: Receives the mutable containers in the encoder's order; references to them are resolved here.
        start: Where the value begins; it must end with the message.

    Raises:
        CodecError: The encoder could not have written these bytes.
    """
    decoder = Decoder(data, resolve, noted, start)
    try:
        value = decoder.get(0)
    except (struct.error, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, ImportError) as error:
        raise CodecError(f"malformed: {type(error).__name__}") from None
    if decoder.at != len(data):
        raise CodecError("malformed: more than one value")
    return value


class Decoder:
    def __init__(self, data: bytes, resolve: Resolve, noted: list[object] | None, start: int) -> None:
        self.data, self.resolve, self.noted, self.at = data, resolve, noted, start

    def take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise CodecError("malformed: cut off")
        return self.data[start : self.at]

    def number(self, form: str) -> int:
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return number

    def get(self, depth: int, mirrored: bool = False) -> object:
        if depth > MAX_DEPTH:
            raise CodecError("nested too deeply")
        tag = self.take(1)
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag == b"i":
            return self.number(">q")
        if tag == b"d":
            return struct.unpack(">d", self.take(8))[0]
        if tag == b"c":
            return complex(*struct.unpack(">dd", self.take(16)))
        if tag in REFERENCES:
            number = self.number(">Q")
            if tag != b"o" or self.noted is None:
                return self.resolve(tag, number)
            if self.noted[number] is None:
                raise CodecError("malformed: a container in itself")
            return self.noted[number]
        count = self.number(">I")
        if self.noted is None or tag not in MUTABLE_TAGS or mirrored:
            return self.sized(tag, count, depth)
        place = len(self.noted)
        self.noted.append(None)
        self.noted[place] = value = self.sized(tag, count, depth)
        return value

    def sized(self, tag: bytes, count: int, depth: int) -> object:
        if tag in b"IsbBqQfG":
            return self.from_content(tag, self.take(count))
        if count > len(self.data) - self.at:
            raise CodecError("malformed: longer than what is there")  # every item takes at least one byte
        last = count - 1 if tag == b"u" else -1  # the data of a derived object is not numbered
        return self.from_items(tag, [self.get(depth + 1, place == last) for place in range(count)])

    def from_content(self, tag: bytes, content: bytes) -> object:
        if tag == b"s":
            return content.decode("utf-8", "surrogatepass")
        if tag == b"b":
            return content
        if tag == b"B":
            return bytearray(content)
        if tag == b"I":
            number = int.from_bytes(content, "big", signed=True)
            if number in INT64 or len(content) != number.bit_length() // 8 + 1:
                raise CodecError("malformed: an int not written as ints are")
            return number
        kind, code = PACKED[tag]
        packed = array(code)
        packed.frombytes(content)
        if not packed:
            raise CodecError("malformed: an empty packed sequence")
        return kind(packed)

    def from_items(self, tag: bytes, items: list[object]) -> object:
        if tag in SEQUENCES:
            value = SEQUENCES[tag](items)
            if len(value) != len(items):
                raise CodecError("malformed: an item twice in a set")
            if self.noted is not None and tag in b"SZ" and not all(map(is_, value, items)):
                self.resolve(tag, None)
            return value
        if tag == b"m":
            mapping = dict(zip(items[::2], items[1::2], strict=True))
            if 2 * len(mapping) != len(items):
                raise CodecError("malformed: a key twice in a dict")
            return mapping
        if tag in DESCRIBED:
            return self.resolve(tag, items)
        if tag == b"M":
            return kept_mapping(items)
        if tag == b"A":
            kind, data = values.expect(items[:2], (str, bytes))
            return values.numpy_array(kind, items[2:], data)
        if tag == b"r":
            return range(*values.expect(items, (int, int, int)))
        if tag == b"D":
            return bounded_queue(items[0], items[1:])
        if tag == b"x" and items and type(items[0]) is str:
            return values.made(items[0], items[1:])
        raise CodecError("malformed: an unknown tag")


def bounded_queue(maxlen: object, items: list[object]) -> deque[object]:
    if not (maxlen is None or isinstance(maxlen, int)):
        raise CodecError("malformed: the length that a queue may have")
    queue = deque(items, maxlen)
    if len(queue) != len(items):
        raise CodecError("malformed: a queue longer than it may be")
    return queue


def kept_mapping(items: list[object]) -> object:
    name, made_by, *rest = items
    pairs = dict(zip(rest[::2], rest[1::2], strict=True))
    if 2 * len(pairs) != len(rest):
        raise CodecError("malformed: a key twice in a dict")
    if name == "defaultdict" and (made_by is None or callable(made_by)):
        return defaultdict(made_by, pairs)
    if made_by is None and type(name) is str and name in ("Counter", "OrderedDict"):
        return values.MAPPINGS[name](pairs)
    raise CodecError("malformed: an unknown kind of dict")
