"""Reads the values that a GGUF header is made of, and believes none of them before it has looked.

Every count and length in a header may be a lie: each is checked against the bytes that are left before
anything of that size is made. Further limits keep memory bounded for a header that is long and consistent.
"""

from __future__ import annotations

import reprlib
import struct
from typing import NoReturn

from octavo.errors import ModelError

Value = int | float | bool | str | list["Value"]

MAX_HEADER = 1 << 27
"""Bytes of header that are looked at. A vocabulary of 262144 tokens with its merges takes about 20 MB."""
MAX_ITEMS = 1 << 22
"""Array items in all arrays of a header together."""
MAX_STRING = 1 << 24
"""Bytes in one string."""
MAX_DEPTH = 4
"""Arrays within arrays."""

_NUMBERS = {
    kind: struct.Struct("<" + code)
    for kind, code in zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
"""GGUF's number of a value type -> its bytes, for u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64."""
_STRING, _ARRAY = 8, 9
_VALUE_TYPES = {*_NUMBERS, _STRING, _ARRAY}
_U32, _U64 = _NUMBERS[4], _NUMBERS[10]

_REPR = reprlib.Repr()
_REPR.maxstring = 80
short = _REPR.repr
"""``repr``, cut to a length that suits one line of an error, without making the whole of it first."""


class Cursor:
    """A position in the header of a GGUF file, which moves forward as values are read.

    Args:
        view: the whole file.
        name: what to call the file in an error.

    All methods raise ``ModelError`` where the bytes are not what they should be.
    """

    def __init__(self, view: memoryview, name: str) -> None:
        self.view = view[:MAX_HEADER]
        self.position = 0
        self.name = name
        self._file_size = len(view)
        self._items_left = MAX_ITEMS

    def fail(self, problem: str) -> NoReturn:
        raise ModelError(f"{self.name} is not a usable GGUF file: {problem}")

    def take(self, size: int) -> int:
        """Move past ``size`` bytes and return where they begin."""
        begin = self.position
        if size > len(self.view) - begin:
            self._fail_at_end(size)
        self.position = begin + size
        return begin

    def u32(self) -> int:
        number: int = _U32.unpack_from(self.view, self.take(4))[0]
        return number

    def u64(self) -> int:
        number: int = _U64.unpack_from(self.view, self.take(8))[0]
        return number

    def count(self, what: str, least_bytes: int) -> int:
        """A 64-bit number of things which take at least ``least_bytes`` bytes each."""
        count = self.u64()
        room = (len(self.view) - self.position) // least_bytes
        if count > room:
            self.fail(f"it claims {count} {what}, and there is room for {room} at most")
        return count

    def string(self) -> str:
        return self._strings(1)[0]

    def value(self, kind: int) -> Value:
        """A metadata value of the GGUF type number ``kind``."""
        return self._value(kind, depth=0)

    def _value(self, kind: int, depth: int) -> Value:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(depth + 1)
        return self._fail_on_type(kind)

    def _number(self, packed: struct.Struct) -> int | float | bool:
        number: int | float | bool = packed.unpack_from(self.view, self.take(packed.size))[0]
        return number

    def _array(self, depth: int) -> list[Value]:
        if depth > MAX_DEPTH:
            self.fail(f"arrays are nested deeper than {MAX_DEPTH}")
        kind = self.u32()
        if kind not in _VALUE_TYPES:
            self._fail_on_type(kind)
        least = _NUMBERS[kind].size if kind in _NUMBERS else 8
        count = self.count("array items", least)
        self._spend(count)
        if kind in _NUMBERS:
            begin = self.take(count * least)
            return list(struct.unpack_from(f"<{count}{_NUMBERS[kind].format[1:]}", self.view, begin))
        if kind == _STRING:
            return list(self._strings(count))
        return [self._value(kind, depth) for _ in range(count)]

    def _spend(self, items: int) -> None:
        self._items_left -= items
        if self._items_left < 0:
            self.fail(f"its metadata has more than {MAX_ITEMS} array items")

    def _strings(self, count: int) -> list[str]:
        """``count`` strings. Vocabularies are read here, so the loop uses local names only."""
        view, position, end, unpack = self.view, self.position, len(self.view), _U64.unpack_from
        strings = []
        try:
            for _ in range(count):
                begin = position + 8
                position = begin + unpack(view, position)[0]
                if position > end or position - begin > MAX_STRING:
                    self._fail_on_length(position - begin, end - begin)
                strings.append(str(view[begin:position], "utf-8"))
        except struct.error:
            self._fail_at_end(8)
        except UnicodeDecodeError:
            self.fail(f"the string at byte {begin} is not UTF-8")
        self.position = position
        return strings

    def _fail_on_type(self, kind: int) -> NoReturn:
        self.fail(f"value type {kind} is unknown; accepted: 0 to {max(_VALUE_TYPES)}")

    def _fail_on_length(self, length: int, room: int) -> NoReturn:
        limit = max(0, min(MAX_STRING, room))
        self.fail(f"a string claims {length} bytes; at most {limit} were expected there")

    def _fail_at_end(self, size: int) -> NoReturn:
        if len(self.view) < self._file_size:
            self.fail(f"its header is longer than {MAX_HEADER} bytes")
        self.fail(f"it ends at byte {self._file_size}, where {size} more bytes of header were expected")
