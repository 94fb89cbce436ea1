"""Reads pickles as data: nothing in a file is imported, called or given state.

A pickle is a program. Python's :class:`pickle._Unpickler` looks up each instruction in a table; here the
table holds only those that build plain values. An import of an allowed name gives an inert
:class:`Name`, and a call an inert :class:`Call`. So nothing can run: no imported name, no attribute of
an allowed one, and no extension code registered by another library.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from inversight.core.errors import DataError

MAX_INSTRUCTIONS = 2_000_000
"""Networks for 1024x1024 images need about 40,000. Each may take a few hundred bytes of memory."""


@dataclass(frozen=True)
class Name:
    """A name that a pickle imports. It is never imported; calling it returns a :class:`Call`."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}")

    def __call__(self, *arguments: Any) -> Call:
        return Call(self, arguments)


class Items(dict[str | int, Any]):
    """A mapping in a pickle. Keys are text or integers: hashing deep tuples overflows the C stack."""

    __slots__ = ()

    def __setitem__(self, key: str | int, value: Any) -> None:
        if not isinstance(key, (str, int)):
            raise _RefusedError("sets items that are not those of a mapping with plain keys")
        super().__setitem__(key, value)


@dataclass(slots=True, eq=False)
class Call:
    """A call in a pickle: what it calls, its arguments, and the state and items given to the result."""

    function: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: Items = field(default_factory=Items)

    def __setitem__(self, key: str | int, value: Any) -> None:
        self.items[key] = value


PERSISTENT = Name("", "persistent id")
"""Function of the call that stands for an object stored outside of the pickle."""


def printable(text: str, limit: int = 80) -> str:
    """Return text of an untrusted file without control characters, cut after ``limit`` characters."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= limit else f"{plain[:limit]}..."


def read_pickle(
    stream: io.BytesIO | mmap.mmap, *, where: str, names: frozenset[Name],
    explained: Mapping[Name, str] | None = None, persistent: bool = False,
) -> Any:  # fmt: skip
    """Read the next pickle in ``stream`` as plain values, :class:`Name` and :class:`Call`.

    Sets become lists.

    Args:
        stream: the file.
        where: name of the file; begins every error message.
        names: everything that the pickle may import.
        explained: messages for names that it may not import.
        persistent: whether it may refer to objects stored outside of it.

    Raises:
        DataError: another name, another instruction, or damaged.
    """
    reader = _Reader(stream, names, explained or {}, persistent)
    try:
        return reader.load()
    except _RefusedError as error:
        found = str(error)
    except Exception as error:
        reason = printable(str(error)) or "the file ends"
        found = f"cut short or damaged: {type(error).__name__}: {reason}"
    raise DataError(
        f"{where}: {found} (before byte {stream.tell()}); the file was refused, and nothing in it was run"
    )


_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}


class _RefusedError(Exception):
    """The pickle holds more than plain data."""


class _Reader(pickle._Unpickler):
    append: Callable[[Any], None]
    stack: list[Any]

    def __init__(
        self, stream: io.BytesIO | mmap.mmap, names: frozenset[Name],
        explained: Mapping[Name, str], persistent: bool,
    ) -> None:  # fmt: skip
        super().__init__(cast(Any, stream))
        self.names, self.explained, self.persistent = names, explained, persistent
        self.dispatch = cast(Any, _Instructions())  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Name:
        wanted = Name(module, name)
        if wanted in self.explained:
            raise _RefusedError(f"asks for {wanted}: {self.explained[wanted]}")
        if wanted not in self.names:
            raise _RefusedError(f"asks for {wanted}, which the data of networks does not need")
        return wanted

    def persistent_load(self, pid: Any) -> Call:
        if not self.persistent:
            raise _RefusedError("refers to an object outside of it (BINPERSID)")
        return Call(PERSISTENT, (pid,))

    def load_items(self) -> None:
        self.append(Items())

    def load_call(self) -> None:
        arguments = self.stack.pop()
        if not isinstance(self.stack[-1], Name) or not isinstance(arguments, tuple):
            raise _RefusedError("calls something that is not a name")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_state(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Call):
            raise _RefusedError("gives state to something that it did not make")
        self.stack[-1].state = state


class _Instructions:
    """Looks up the method of an instruction, and counts instructions."""

    def __init__(self) -> None:
        self.count = 0

    def __getitem__(self, code: int) -> Callable[[_Reader], None]:
        self.count += 1
        if self.count > MAX_INSTRUCTIONS:
            raise _RefusedError("has more instructions than any published network")
        if code not in _METHODS:
            name = next((name for name, own in _CODES.items() if own == code), f"{code:#x}")
            raise _RefusedError(f"has the instruction {name}, which data does not need")
        return _METHODS[code]


_STANDARD = pickle._Unpickler.dispatch
_UNCHANGED = (
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL "
    "BINPERSID NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINUNICODE8 "
    "SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST APPEND APPENDS SETITEM SETITEMS"
)
_METHODS: dict[int, Callable[[Any], None]] = {
    **{_CODES[name]: _STANDARD[_CODES[name]] for name in _UNCHANGED.split()},
    _CODES["EMPTY_SET"]: _STANDARD[_CODES["EMPTY_LIST"]],
    _CODES["ADDITEMS"]: _STANDARD[_CODES["APPENDS"]],
    _CODES["FROZENSET"]: _STANDARD[_CODES["TUPLE"]],
    _CODES["EMPTY_DICT"]: _Reader.load_items,
    _CODES["REDUCE"]: _Reader.load_call,
    _CODES["NEWOBJ"]: _Reader.load_call,
    _CODES["BUILD"]: _Reader.load_state,
}
