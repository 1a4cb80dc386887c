"""Read untrusted pickle files without executing them.

A pickle is a program. `unpickle` interprets the opcodes that data files need and builds a tree of plain values:
numbers, text, bytes, lists, tuples and dictionaries. Every other object becomes a `Call`, which records the name of
the function or class, its arguments and its state. Nothing that a file names is imported or called. Readers interpret
the finished tree, so a value cannot change after its check.

Restricting ``find_class`` of `pickle.Unpickler` is not enough: its memo is an array as long as the largest index in the
file, it hashes nested tuples in exponential time, and its BUILD opcode sets attributes of whatever object
``find_class`` returns. Here only opcodes that push, move or memorise plain values have the standard library's handlers
(of `pickle._Unpickler`, in Python). Opcodes that hash, call or change an object have handlers here; others are refused.

Readers must not print, compare or recurse into the tree without a bound, because a small file can share one list many
times on many levels.
"""

import codecs
import dataclasses
import io
import itertools
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any

_MOST_MARKS, _MOST_WIDE_KEYS, _LONGEST_NAME = 1000, 3000, 255

# Escapes that Python writes; codecs.escape_decode warns of others.
_ESCAPES = re.compile(rb"\\(?:[\\'\"nrt]|x[0-9a-fA-F]{2})")


class UnreadablePickle(Exception):
    """The pickle is damaged or exceeds a limit; the message continues "the pickle ..."."""


class PickleCutShort(UnreadablePickle):
    """The pickle ends before its STOP opcode."""


class ForeignGlobal(UnreadablePickle):
    """The pickle names a function or class that the reader does not allow."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on the size of one pickle."""

    opcodes: int
    """Number of opcodes. Each takes at most about 200 bytes of memory, apart from text and bytes."""
    text: int
    """Bytes of memory of all text and byte strings together."""


class _Record:
    __slots__: tuple[str, ...] = ()

    def __init__(self, *values: Any) -> None:
        for name, value in itertools.zip_longest(self.__slots__, values):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")


class Global(_Record):
    """Name of a function or class in a pickle."""

    __slots__ = ("module", "name")
    module: str
    name: str


class Call(_Record):
    """Record of an object that a pickle describes by a call: the function or class, its arguments and its state."""

    __slots__ = ("function", "arguments", "state")  # noqa: RUF023
    function: Global
    arguments: tuple[Any, ...]
    state: Any


class Reference(_Record):
    """Reference to something outside the pickle, such as a tensor's storage."""

    __slots__ = ("id",)
    id: Any


@dataclasses.dataclass(frozen=True)
class Unpickled:
    """Content of one pickle."""

    value: Any
    """Tree of plain values, `Call`, `Global` and `Reference`."""
    end: int
    """Index of the first byte after the pickle."""
    references: list[Reference]
    """Every reference in the pickle, in the order of the file."""


def unpickle(
    data: bytes, allowed: Callable[[str, str], bool], limits: Limits, *, start: int = 0, references: bool = False
) -> Unpickled:
    """Read one pickle of protocol 0 to 5.

    Byte strings of Python 2 become text, one character a byte (latin1). Sets become lists, byte arrays become bytes,
    and an ``OrderedDict`` becomes a dictionary.

    Args:
        data: bytes of the file.
        allowed: whether the file may name a function or class, given its module and its name.
        limits: bounds on the size.
        start: index of the pickle's first byte.
        references: whether the pickle may refer to something outside itself (persistent ids).

    Raises:
        PickleCutShort: if the data ends before the pickle does.
        ForeignGlobal: if the pickle names something that is not allowed.
        UnreadablePickle: if the pickle is damaged, exceeds a limit or uses an opcode that no data file needs.
    """
    machine = _Machine(data, allowed, limits, start, references)
    try:
        return Unpickled(machine.load(), machine.position, machine.references)
    except (pickle.UnpicklingError, struct.error, LookupError, AttributeError, TypeError, ValueError, OverflowError):
        raise UnreadablePickle(f"has an opcode before byte {machine.position} that does not fit its operands") from None
    except (MemoryError, RecursionError):
        raise UnreadablePickle("asks for more memory or depth than such a file needs") from None


class _Memo(dict[int, Any]):
    """Values by number; the limit also keeps a file from choosing numbers whose hashes collide."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __setitem__(self, index: int, value: Any) -> None:
        if index >= self.most:
            raise UnreadablePickle(f"stores a value under number {index}; at most {self.most} expected")
        super().__setitem__(index, value)

    def __missing__(self, index: int) -> Any:
        raise UnreadablePickle(f"refers to value {index}, which it has not stored")


class _Machine(pickle._Unpickler):
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, allowed: Callable[[str, str], bool], limits: Limits, start: int, may_refer: bool):
        super().__init__(io.BytesIO(), encoding="latin1")
        self.data, self.position = data, start
        self.allowed, self.limits, self.may_refer = allowed, limits, may_refer
        self.references: list[Reference] = []
        self.opcodes_left, self.text_left, self.wide_keys = limits.opcodes, limits.text, 0
        self.memo = _Memo(limits.opcodes)
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []  # values below each mark
        self.append = self.stack.append

    def load(self) -> Any:
        while (code := self.read(1)) != pickle.STOP:
            self.spend(1)
            if code not in _HANDLERS:
                raise UnreadablePickle(f"has byte {code[0]:#04x}, which is no opcode of a data file")
            _HANDLERS[code](self)
            if code in _TEXT_CODES:
                self.text_left -= sys.getsizeof(self.stack[-1])
                if self.text_left < 0:
                    raise UnreadablePickle(f"has more than {self.limits.text} bytes of text and arrays")
        return self.stack.pop()

    def spend(self, opcodes: int) -> None:
        self.opcodes_left -= opcodes
        if self.opcodes_left < 0:
            raise UnreadablePickle(f"has more than {self.limits.opcodes} opcodes")

    def read(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise PickleCutShort("is cut short")
        return self.data[start : self.position]

    def readline(self, longest: int | None = _LONGEST_NAME) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PickleCutShort("is cut short")
        if longest is not None and end - self.position > longest:
            raise UnreadablePickle(f"has a number or name of {end - self.position} characters; {longest} expected")
        return self.read(end + 1 - self.position)

    def load_string(self) -> None:
        quoted = self.readline(None)[:-1]
        if len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
            raise UnreadablePickle("has a string without quotes")
        if b"\\" in _ESCAPES.sub(b"", quoted[1:-1]):
            raise UnreadablePickle("has a string with an unknown escape")
        self.append(codecs.escape_decode(quoted[1:-1])[0].decode("latin1"))  # type: ignore[attr-defined]

    def load_mark(self) -> None:
        if len(self.metastack) >= _MOST_MARKS:
            raise UnreadablePickle(f"is nested more than {_MOST_MARKS} levels deep")
        super().load_mark()  # type: ignore[misc]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise UnreadablePickle("appends to an object that is not a list")
        self.stack[-1].extend(items)

    def set_items(self, items: Iterable[tuple[Any, Any]]) -> None:
        if type(self.stack[-1]) is not dict:
            raise UnreadablePickle("sets entries of an object that is not a dictionary")
        for key, value in items:
            if type(key) is int:
                # Numbers can be chosen so that their hashes collide.
                self.wide_keys += not -(2**32) < key < 2**32
                if self.wide_keys > _MOST_WIDE_KEYS:
                    raise UnreadablePickle(f"has more than {_MOST_WIDE_KEYS} large numbers as keys of dictionaries")
            elif type(key) is not str:  # the hash of a nested tuple takes exponential time
                kind = type(key).__name__
                raise UnreadablePickle(f"has a {kind} as the key of a dictionary; text or numbers expected")
            self.stack[-1][key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([(key, value)])

    def set_marked_items(self) -> None:
        items = self.pop_mark()
        self.set_items(zip(items[::2], items[1::2], strict=True))

    def make_dict(self) -> None:
        self.metastack[-1].append({})
        self.set_marked_items()

    def find_class(self, module: str, name: str) -> Global:
        if max(len(module), len(name)) > _LONGEST_NAME or not self.allowed(module, name):
            path = f"{module}.{name}"
            raise ForeignGlobal(f"refers to {path[:80]!r}, which such a file does not need; nothing was executed")
        return Global(module, name)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise UnreadablePickle("calls an object that is not a function or class")
        if (function.module, function.name) != ("collections", "OrderedDict"):
            self.append(Call(function, arguments))
            return
        pairs = arguments[0] if arguments else []  # Python 2 passes a list of pairs
        if len(arguments) > 1 or type(pairs) is not list or any(type(pair) not in (list, tuple) for pair in pairs):
            raise UnreadablePickle("has an OrderedDict that is not made of pairs")
        self.spend(len(pairs))  # the same list can serve many calls
        self.append({})
        self.set_items((key, value) for key, value in pairs)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Call and target.state is None:
            object.__setattr__(target, "state", state)
        elif type(target) is not dict:  # attributes of an OrderedDict are dropped
            raise UnreadablePickle("sets the state of an object that has none")

    def persistent_load(self, pid: Any) -> Reference:
        if not self.may_refer:
            raise UnreadablePickle("refers to something outside the file")
        self.references.append(Reference(pid))
        return self.references[-1]


_TEXT = (
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_PLAIN = (
    "PROTO NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT POP POP_MARK LIST EMPTY_LIST "
    "EMPTY_DICT TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL "
    "STACK_GLOBAL BINPERSID"
)
_TEXT_CODES = frozenset(getattr(pickle, name) for name in _TEXT.split())
_STANDARD: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch
_HANDLERS: dict[bytes, Callable[[Any], None]] = {
    **{code: _STANDARD[code[0]] for code in (getattr(pickle, name) for name in f"{_TEXT} {_PLAIN}".split())},
    pickle.FRAME: lambda machine: machine.read(8),
    pickle.STRING: _Machine.load_string,
    pickle.UNICODE: lambda machine: machine.append(machine.readline(None)[:-1].decode("raw-unicode-escape")),
    pickle.BYTEARRAY8: _STANDARD[pickle.BINBYTES8[0]],
    pickle.MARK: _Machine.load_mark,
    pickle.APPEND: lambda machine: machine.extend([machine.stack.pop()]),
    pickle.APPENDS: lambda machine: machine.extend(machine.pop_mark()),
    pickle.EMPTY_SET: lambda machine: machine.append([]),
    pickle.ADDITEMS: lambda machine: machine.extend(machine.pop_mark()),
    pickle.FROZENSET: lambda machine: machine.append(tuple(machine.pop_mark())),
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: _Machine.set_marked_items,
    pickle.DICT: _Machine.make_dict,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.BUILD: _Machine.build,
}
