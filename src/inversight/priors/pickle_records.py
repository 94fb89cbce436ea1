"""Reads a pickle as a record of what it asks for, and does none of it.

A pickle is a program. :mod:`pickletools` decodes its instructions, and the machine here carries out
those that build lists, dicts and tuples. An imported name is a label, checked against a list; a call
is a record of label and arguments. Nothing is looked up, called or given state on the file's behalf,
so that neither a name, nor the attributes of an allowed one, nor an extension code that another
library registered can lead anywhere.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, cast

from inversight.core.errors import DataError

MOST_INSTRUCTIONS = 2_000_000
"""The networks of 1024x1024 images take some forty thousand; each may cost a few hundred bytes."""
_HIGHEST_PROTOCOL = 5
_LITERALS = frozenset(
    {
        "BINBYTES",
        "BINBYTES8",
        "BINFLOAT",
        "BININT",
        "BININT1",
        "BININT2",
        "BINUNICODE",
        "BINUNICODE8",
        "LONG1",
        "SHORT_BINBYTES",
        "SHORT_BINUNICODE",
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class Name:
    """A name that a pickle wants imported. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(slots=True, eq=False)
class Call:
    """A call that a pickle wants made: the maker, its arguments, and what is put into the result."""

    maker: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[str | int, Any] = field(default_factory=dict)


PERSISTENT = Name("", "persistent id")
"""Maker of the record that stands for an object kept beside the pickle."""


def shown(text: str, most: int = 80) -> str:
    """Text from a file that may be hostile, short and without control characters."""
    plain = ascii(text)[1:-1]
    return plain if len(plain) <= most else f"{plain[:most]}..."


def read_records(
    stream: io.BytesIO | mmap.mmap,
    *,
    where: str,
    names: frozenset[Name],
    explained: Mapping[Name, str] | None = None,
    persistent: bool = False,
) -> Any:
    """The next pickle in ``stream``: plain values, :class:`Name` and :class:`Call`; sets are lists.

    ``where`` begins every message. ``names`` are all that the pickle may import; ``explained`` says
    more about some that it may not. ``persistent``: it may refer to objects kept beside it.

    Raises:
        DataError: another name, another instruction, or damaged.
    """
    machine = _Machine(where, names, explained or {}, persistent)
    position = 0
    try:
        for count, (opcode, argument, at) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
            position = at or 0
            if count > MOST_INSTRUCTIONS:
                raise DataError(f"{where}: has more instructions than any published network")
            if opcode.name == "STOP":
                return machine.pop()
            machine.do(opcode.name, argument, position)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = shown(str(error)) or type(error).__name__
        raise DataError(f"{where}: cut short or damaged at byte {position} ({reason})") from None
    raise DataError(f"{where}: cut short at byte {position}")


class _Machine:
    """The pickle machine's stack and memo, for the instructions that data needs."""

    def __init__(
        self, where: str, names: frozenset[Name], explained: Mapping[Name, str], persistent: bool
    ) -> None:
        self.where = where
        self.names = names
        self.explained = explained
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        # A mapping: the interpreter's own machine makes an array as long as the largest index.
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def do(self, name: str, argument: Any, position: int) -> None:
        """Carry out instruction ``name``."""
        push = self.stack.append
        if name in _LITERALS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _SHORT_TUPLES:
            push(tuple(self._last(_SHORT_TUPLES[name])))
        elif name == "TUPLE":
            push(tuple(self._since_mark()))
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            push([])
        elif name == "EMPTY_DICT":
            push({})
        elif name == "FROZENSET":
            push(self._since_mark())
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "APPEND":
            self._extend(self._last(1), position)
        elif name in ("APPENDS", "ADDITEMS"):
            self._extend(self._since_mark(), position)
        elif name == "SETITEM":
            self._set_items(self._last(2), position)
        elif name == "SETITEMS":
            self._set_items(self._since_mark(), position)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            push(self._allowed(module, attribute, position))
        elif name == "STACK_GLOBAL":
            module, attribute = self._last(2)
            push(self._allowed(module, attribute, position))
        elif name in ("REDUCE", "NEWOBJ"):
            maker, arguments = self._last(2)
            if not isinstance(maker, Name) or not isinstance(arguments, tuple):
                raise self._refusal("calls something that is not a name", position)
            push(Call(maker, arguments))
        elif name == "BUILD":
            (state,) = self._last(1)
            if not isinstance(self.stack[-1], Call):
                raise self._refusal("gives state to something that it did not make", position)
            self.stack[-1].state = state
        elif name == "BINPERSID" and self.persistent:
            push(Call(PERSISTENT, (self.pop(),)))
        elif name == "PROTO":
            if argument > _HIGHEST_PROTOCOL:
                raise self._refusal(f"is of pickle protocol {argument}", position)
        elif name != "FRAME":
            raise self._refusal(f"has the instruction {name}, which data does not need", position)

    def _last(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise IndexError("the stack is empty")
        taken = self.stack[-n:]
        del self.stack[-n:]
        return taken

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def _extend(self, values: list[Any], position: int) -> None:
        if not isinstance(self.stack[-1], list):
            raise self._refusal("appends to something that is not a list", position)
        self.stack[-1].extend(values)

    def _set_items(self, values: list[Any], position: int) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Call) else target
        keys = values[::2]
        if not isinstance(items, dict) or not all(isinstance(k, (str, int)) for k in keys):
            raise self._refusal(
                "sets items that are not those of a mapping with plain keys", position
            )
        items.update(zip(keys, values[1::2], strict=True))

    def _allowed(self, module: Any, name: Any, position: int) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._refusal("asks for a name that is not text", position)
        wanted = Name(module, name)
        if wanted in self.explained:
            raise DataError(f"{self.where}: asks for {wanted}: {self.explained[wanted]}")
        if wanted not in self.names:
            raise self._refusal(
                f"asks for {wanted}, which the data of networks does not need", position
            )
        return wanted

    def _refusal(self, what: str, position: int) -> DataError:
        return DataError(
            f"{self.where}: {what} (byte {position}); the file was refused, and nothing in it was run"
        )
