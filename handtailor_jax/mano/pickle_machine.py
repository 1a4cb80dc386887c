"""Interpreter of the pickle opcodes that data files need; see `handtailor_jax.mano.safe_pickle`."""

import pickle
import struct
import sys
from collections.abc import Callable
from typing import Any

from handtailor_jax.mano.pickle_operands import Operands
from handtailor_jax.mano.pickle_records import (
    Call,
    ForeignGlobal,
    Global,
    Limits,
    PickleCutShort,
    Reference,
    UnreadablePickle,
)


def interpret(
    data: bytes, allowed: Callable[[str, str], bool], limits: Limits, start: int, may_refer: bool
) -> tuple[Any, int, list[Reference]]:
    """Read one pickle: its value, the index of the first byte after it, and its references.

    The arguments are those of `handtailor_jax.mano.safe_pickle.unpickle`.
    """
    machine = _Machine(data, allowed, limits, start, may_refer)
    try:
        return machine.run(), machine.position, machine.references
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        raise UnreadablePickle(f"has an opcode before byte {machine.position} that does not fit its operands") from None


_MOST_MARKS = 1000
_MOST_WIDE_KEYS = 3000
_LONGEST_NAME = 200


class _Machine(Operands):
    """State of one run: position in the file, stack, marks and memo."""

    def __init__(
        self, data: bytes, allowed: Callable[[str, str], bool], limits: Limits, start: int, references: bool
    ) -> None:
        super().__init__(data, start)
        self.allowed, self.limits, self.may_refer = allowed, limits, references
        self.references: list[Reference] = []
        self.opcodes_left, self.text_left, self.wide_keys = limits.opcodes, limits.text, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, stop = self.data, pickle.STOP[0]
        while True:
            if self.position >= len(data):
                raise PickleCutShort("is cut short")
            code = data[self.position]
            self.position += 1
            self.opcodes_left -= 1
            if self.opcodes_left < 0:
                raise self.too_many_opcodes()
            if code == stop:
                return self.stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise UnreadablePickle(
                    f"has byte {code:#04x} at {self.position - 1}, which is no opcode of a data file"
                )
            operation(self)

    def too_many_opcodes(self) -> UnreadablePickle:
        return UnreadablePickle(f"has more than {self.limits.opcodes} opcodes")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_text(self, value: str | bytes) -> None:
        self.text_left -= sys.getsizeof(value)
        if self.text_left < 0:
            raise UnreadablePickle(f"has more than {self.limits.text} bytes of text and arrays")
        self.stack.append(value)

    # Containers

    def mark(self) -> None:
        if len(self.below) >= _MOST_MARKS:
            raise UnreadablePickle(f"is nested more than {_MOST_MARKS} levels deep")
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def make_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise UnreadablePickle("appends to an object that is not a list")
        target.extend(items)

    def set_items(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        if type(target) is not dict:
            raise UnreadablePickle("sets entries of an object that is not a dictionary")
        for key, value in zip(keys, values, strict=True):
            if type(key) is int:
                # Numbers can be chosen so that their hashes collide.
                self.wide_keys += not -(2**32) < key < 2**32
                if self.wide_keys > _MOST_WIDE_KEYS:
                    raise UnreadablePickle(f"has more than {_MOST_WIDE_KEYS} large numbers as keys of dictionaries")
            elif type(key) is not str:
                # The hash of a nested tuple takes exponential time.
                raise UnreadablePickle(
                    f"has a {type(key).__name__} as the key of a dictionary; text or numbers expected"
                )
            target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key], [value])

    def append(self) -> None:
        value = self.stack.pop()
        self.extend([value])

    def set_marked_items(self) -> None:
        items = self.pop_mark()
        self.set_items(self.stack[-1], items[::2], items[1::2])

    def make_dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(self.stack[-1], items[::2], items[1::2])

    # Memo

    def put(self, index: int) -> None:
        if not 0 <= index < self.limits.opcodes:
            raise UnreadablePickle(f"stores a value under number {index}; at most {self.limits.opcodes} expected")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise UnreadablePickle(f"refers to value {index}, which it has not stored")
        self.stack.append(self.memo[index])

    # Objects

    def push_global(self, module: str, name: str) -> None:
        if not self.allowed(module, name):
            raise ForeignGlobal(f"{module}.{name}")
        self.push(Global(module, name))

    def global_line(self) -> None:
        self.push_global(self.line(_LONGEST_NAME).decode("utf-8"), self.line(_LONGEST_NAME).decode("utf-8"))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str or max(len(module), len(name)) > _LONGEST_NAME:
            raise UnreadablePickle("names a function by something other than short text")
        self.push_global(module, name)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise UnreadablePickle("calls an object that is not a function or class")
        if (function.module, function.name) == ("collections", "OrderedDict"):
            self.ordered_dict(arguments)
        else:
            self.push(Call(function, arguments))

    def ordered_dict(self, arguments: tuple[Any, ...]) -> None:
        """Push a dictionary; Python 2 passes its entries as a list of pairs."""
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or type(pairs) is not list or any(type(pair) not in (list, tuple) for pair in pairs):
            raise UnreadablePickle("has an OrderedDict that is not made of pairs")
        self.opcodes_left -= len(pairs)  # the same list can serve many calls
        if self.opcodes_left < 0:
            raise self.too_many_opcodes()
        self.push({})
        self.set_items(self.stack[-1], [key for key, _ in pairs], [value for _, value in pairs])

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Call and target.state is None:
            object.__setattr__(target, "state", state)
        elif type(target) is not dict:  # attributes of an OrderedDict are dropped
            raise UnreadablePickle("sets the state of an object that has none")

    def reference(self) -> None:
        if not self.may_refer:
            raise UnreadablePickle("refers to something outside the file")
        self.references.append(Reference(self.stack.pop()))
        self.push(self.references[-1])


_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    code[0]: operation
    for code, operation in {
        pickle.PROTO: lambda m: m.take(1),
        pickle.FRAME: lambda m: m.take(8),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.INT: lambda m: m.push(m.int_line()),
        pickle.LONG: lambda m: m.push(m.int_line()),
        pickle.BININT: lambda m: m.push(m.signed(4)),
        pickle.BININT1: lambda m: m.push(m.unsigned(1)),
        pickle.BININT2: lambda m: m.push(m.unsigned(2)),
        pickle.LONG1: lambda m: m.push(m.long(1)),
        pickle.LONG4: lambda m: m.push(m.long(4)),
        pickle.FLOAT: lambda m: m.push(float(m.line())),
        pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        pickle.STRING: lambda m: m.push_text(m.quoted_line()),
        pickle.SHORT_BINSTRING: lambda m: m.push_text(m.byte_string(1)),
        pickle.BINSTRING: lambda m: m.push_text(m.byte_string(4)),
        pickle.UNICODE: lambda m: m.push_text(m.line(None).decode("raw-unicode-escape")),
        pickle.SHORT_BINUNICODE: lambda m: m.push_text(m.text(1)),
        pickle.BINUNICODE: lambda m: m.push_text(m.text(4)),
        pickle.BINUNICODE8: lambda m: m.push_text(m.text(8)),
        pickle.SHORT_BINBYTES: lambda m: m.push_text(m.data_bytes(1)),
        pickle.BINBYTES: lambda m: m.push_text(m.data_bytes(4)),
        pickle.BINBYTES8: lambda m: m.push_text(m.data_bytes(8)),
        pickle.BYTEARRAY8: lambda m: m.push_text(m.data_bytes(8)),
        pickle.MARK: _Machine.mark,
        pickle.POP: _Machine.pop,
        pickle.POP_MARK: _Machine.pop_mark,
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.TUPLE1: lambda m: m.make_tuple(1),
        pickle.TUPLE2: lambda m: m.make_tuple(2),
        pickle.TUPLE3: lambda m: m.make_tuple(3),
        pickle.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
        pickle.FROZENSET: lambda m: m.push(tuple(m.pop_mark())),
        pickle.EMPTY_LIST: lambda m: m.push([]),
        pickle.EMPTY_SET: lambda m: m.push([]),
        pickle.LIST: lambda m: m.push(m.pop_mark()),
        pickle.APPEND: _Machine.append,
        pickle.APPENDS: lambda m: m.extend(m.pop_mark()),
        pickle.ADDITEMS: lambda m: m.extend(m.pop_mark()),
        pickle.EMPTY_DICT: lambda m: m.push({}),
        pickle.DICT: _Machine.make_dict,
        pickle.SETITEM: _Machine.set_item,
        pickle.SETITEMS: _Machine.set_marked_items,
        pickle.GET: lambda m: m.get(int(m.line())),
        pickle.BINGET: lambda m: m.get(m.unsigned(1)),
        pickle.LONG_BINGET: lambda m: m.get(m.unsigned(4)),
        pickle.PUT: lambda m: m.put(int(m.line())),
        pickle.BINPUT: lambda m: m.put(m.unsigned(1)),
        pickle.LONG_BINPUT: lambda m: m.put(m.unsigned(4)),
        pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
        pickle.GLOBAL: _Machine.global_line,
        pickle.STACK_GLOBAL: _Machine.stack_global,
        pickle.REDUCE: _Machine.call,
        pickle.NEWOBJ: _Machine.call,
        pickle.BUILD: _Machine.build,
        pickle.BINPERSID: _Machine.reference,
    }.items()
}
