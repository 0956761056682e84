"""Calls whose name stands before their arguments, as in ``name[ARGS]{…}``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from octavo.text.output.calls import Calls, Function
from octavo.text.output.json_calls import JsonShape, stream_object
from octavo.text.output.lark import Speller, arguments_object
from octavo.text.output.source import NotACallError, Parse

_MAX_HEAD = 512


@dataclass(frozen=True)
class NamedShape:
    """A head with the function's name, then the arguments as a JSON object.

    Where a JSON object or list stands in place of the head, it is read as ``JsonShape`` reads it.

    Attributes:
        head: a regular expression for all that stands before the arguments, with a group ``name`` and maybe one
            ``id``, which is the call's.
        written: how a head is written, with ``{name}`` and maybe ``{index}``, a number, in their places; None: calls
            are written as a list of JSON objects.
    """

    head: str
    written: str | None

    @property
    def as_list(self) -> bool:
        return self.written is None

    def read(self, calls: Calls) -> Parse[None]:
        source = calls.source
        yield from source.skip_space()
        if (yield from source.peek()) in "[{":
            yield from JsonShape().read(calls)
            return
        head = yield from source.until("{", _MAX_HEAD)
        found = re.fullmatch(self.head, head.rstrip())
        if found is None:
            raise NotACallError
        calls.start(found["name"], found.groupdict().get("id"))
        yield from stream_object(calls)

    @property
    def markers(self) -> tuple[str, ...]:
        return () if self.written is None else (self.written,)

    def rules(self, symbol: str, function: Function, spell: Speller) -> str:
        if self.written is None:
            return JsonShape().rules(symbol, function, spell)
        head = self.written.replace("{name}", function.name)
        parts = " /[0-9]{1,4}/ ".join(map(spell, head.split("{index}")))
        return f"{symbol}: {parts} {arguments_object(function.parameters)}\n"
