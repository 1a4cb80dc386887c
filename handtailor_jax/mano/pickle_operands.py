"""Read the operands of pickle opcodes from bytes; see `handtailor_jax.mano.safe_pickle`."""

import codecs
import re

from handtailor_jax.mano.pickle_records import PickleCutShort, UnreadablePickle

_LONGEST_NUMBER = 255

# Escapes that Python writes; codecs.escape_decode warns of others.
_ESCAPES = re.compile(rb"\\(?:[\\'\"nrt]|x[0-9a-fA-F]{2})")


class Operands:
    """Bytes of a file and the position of the next operand; no declared length is trusted."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position

    def take(self, count: int) -> bytes:
        """Read a number of bytes."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise PickleCutShort("is cut short")
        return self.data[start : self.position]

    def unsigned(self, width: int) -> int:
        """Read a whole number of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def signed(self, width: int) -> int:
        """Read a whole number of `width` bytes that may be negative."""
        return int.from_bytes(self.take(width), "little", signed=True)

    def long(self, width: int) -> int:
        """Read a whole number after its length, which takes `width` bytes."""
        count = self.unsigned(width)
        if count > _LONGEST_NUMBER:
            raise UnreadablePickle(f"has a number of {count} bytes; at most {_LONGEST_NUMBER} expected")
        return self.signed(count)

    def line(self, longest: int | None = _LONGEST_NUMBER) -> bytes:
        """Read to the end of the line."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PickleCutShort("is cut short")
        if longest is not None and end - self.position > longest:
            raise UnreadablePickle(f"has a number or name of {end - self.position} characters; {longest} expected")
        return self.take(end + 1 - self.position)[:-1]

    def int_line(self) -> int:
        """Read a whole number or, in the form of protocol 0, a truth value."""
        text = self.line()
        if text in (b"00", b"01"):
            return text == b"01"
        return int(text.removesuffix(b"L"))

    def quoted_line(self) -> str:
        """Read a byte string of Python 2 in quotes as text, one character a byte."""
        quoted = self.line(longest=None)
        if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
            raise UnreadablePickle("has a string without quotes")
        body = quoted[1:-1]
        if b"\\" in _ESCAPES.sub(b"", body):
            raise UnreadablePickle("has a string with an unknown escape")
        return codecs.escape_decode(body)[0].decode("latin1")  # type: ignore[attr-defined]

    def byte_string(self, width: int) -> str:
        """Read a byte string of Python 2 as text, one character a byte, after its length."""
        return self.take(self.unsigned(width)).decode("latin1")

    def text(self, width: int) -> str:
        """Read text after its length in bytes."""
        return self.take(self.unsigned(width)).decode("utf-8", "surrogatepass")

    def data_bytes(self, width: int) -> bytes:
        """Read bytes after their number."""
        return self.take(self.unsigned(width))
