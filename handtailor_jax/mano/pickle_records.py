"""Plain records that the project's pickle reader builds, its limits and its errors."""

import dataclasses
from typing import Any


class UnreadablePickle(Exception):
    """The pickle is damaged or exceeds a limit; the message continues a sentence such as "the pickle ..."."""


class PickleCutShort(UnreadablePickle):
    """The pickle ends before its STOP opcode."""


class ForeignGlobal(UnreadablePickle):
    """The pickle names a function or class that the reader does not allow; the message is the name."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on the size of one pickle."""

    opcodes: int
    """Number of opcodes. Each takes at most about 100 bytes of memory, apart from text and bytes."""
    text: int
    """Bytes of memory of all text and byte strings together."""


class Global:
    """Name of a function or class in a pickle."""

    __slots__ = ("module", "name")
    module: str
    name: str

    def __init__(self, module: str, name: str) -> None:
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")


class Call:
    """Record of an object that a pickle describes by a call: the function or class, its arguments and its state."""

    __slots__ = ("arguments", "function", "state")
    function: Global
    arguments: tuple[Any, ...]
    state: Any

    def __init__(self, function: Global, arguments: tuple[Any, ...]) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "arguments", arguments)
        object.__setattr__(self, "state", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")


class Reference:
    """Reference to something outside the pickle, such as a tensor's storage."""

    __slots__ = ("id",)
    id: Any

    def __init__(self, id: Any) -> None:
        object.__setattr__(self, "id", id)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is read-only")
