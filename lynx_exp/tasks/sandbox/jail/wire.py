"""Messages between tester and candidate: four bytes of length, then as many bytes, the first of which says of what
kind: a question, its answer; a call to a function of the tester's, what came of it; changes of what both have."""

from __future__ import annotations

import os
import struct

MAX_MESSAGE = 32 * 2**20
READY = b"R"
QUESTION, ANSWER, CALL, RETURN, CHANGES = b"?", b"=", b"(", b")", b"~"


class Closed(Exception):
    """The other side is gone."""


class TooLong(Exception):
    """A message announced itself as longer than any may be."""


def send(fd: int, message: bytes) -> None:
    data = memoryview(struct.pack(">I", min(len(message), 2**32 - 1)) + message)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        raise Closed from None


def receive(fd: int, limit: int = MAX_MESSAGE) -> bytes:
    (length,) = struct.unpack(">I", read_exactly(fd, 4))
    if length > limit:
        raise TooLong
    return read_exactly(fd, length)


def read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 2**20))
        if not part:
            raise Closed
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
