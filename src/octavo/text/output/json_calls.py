"""Calls that are JSON objects with a name and arguments, one by one or in a list."""

from __future__ import annotations

import json
from dataclasses import dataclass

from octavo.text.output.calls import Calls, Function
from octavo.text.output.lark import Speller, arguments_object, quoted
from octavo.text.output.nesting import Nesting, read_value
from octavo.text.output.source import NotACallError, Parse

_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("id", "type", "index")
_NOTHING = ("", "null")


@dataclass(frozen=True)
class JsonShape:
    """``{"name": …, "arguments": {…}}``, or a list of these.

    Both names of the arguments are read, in either order with the name; arguments that are a string are read as what
    it spells, as OpenAI writes them.

    Attributes:
        arguments: the name under which they are written.
        as_list: calls are written as a list, even a single one.
        needs_arguments: an object without them is no call. For calls without a marker: other objects have names, too.
    """

    arguments: str = "arguments"
    as_list: bool = False
    needs_arguments: bool = False

    def read(self, calls: Calls) -> Parse[None]:
        source = calls.source
        yield from source.skip_space()
        if not (yield from source.literal("[")):
            yield from self._read_object(calls)
            return
        yield from self._read_object(calls)
        while (yield from _comma(calls)):
            yield from self._read_object(calls)
        yield from source.expect("]")

    @property
    def markers(self) -> tuple[str, ...]:
        return ()

    def rules(self, symbol: str, function: Function, spell: Speller) -> str:
        head = f'{{"name": {json.dumps(function.name)}, "{self.arguments}": '
        return f'{symbol}: {quoted(head)} {arguments_object(function.parameters)} "}}"\n'

    def _read_object(self, calls: Calls) -> Parse[None]:
        yield from calls.source.expect("{")
        is_over = yield from self._read_call(calls)
        while not is_over:
            is_over = (yield from _read_key(calls)) is None
            if not is_over:
                yield from read_value(calls.source, ",}")

    def _read_call(self, calls: Calls) -> Parse[bool]:
        """Read until the call is told: when its arguments begin, or with its name if that comes after them.

        Returns:
            Whether the object is over, too.
        """
        name = held = ""
        while not (name and held):
            key = yield from _read_key(calls)
            if key is None:
                self._tell_without_arguments(calls, name)
                return True
            if key in _ARGUMENTS and name and (yield from _begins_object(calls)):
                calls.start(name)
                yield from stream_object(calls)
                return False
            value = yield from read_value(calls.source, ",}")
            if key == "name":
                name = _checked_name(calls, value)
            elif key in _ARGUMENTS:
                held = _held_arguments(value)
            elif key not in _OTHERS:
                raise NotACallError
        tell(calls, name, held)
        return False

    def _tell_without_arguments(self, calls: Calls, name: str) -> None:
        if self.needs_arguments:
            raise NotACallError
        tell(calls, name, "{}")


def tell(calls: Calls, name: str, arguments: str) -> None:
    """Tell a call that is all there."""
    calls.start(name)
    calls.arguments(arguments)
    calls.end()


def stream_object(calls: Calls) -> Parse[None]:
    """Tell the object that begins here as the rest of the call, as it comes."""
    source, nesting = calls.source, Nesting()
    while (end := nesting.scan(source.text, 0)) < 0:
        source.at = len(source.text)
        calls.arguments(source.take())
        yield from source.more()
    source.at = end
    calls.arguments(source.take())
    if nesting.broken:
        raise NotACallError
    calls.end()


def _comma(calls: Calls) -> Parse[bool]:
    yield from calls.source.skip_space()
    return (yield from calls.source.literal(","))


def _begins_object(calls: Calls) -> Parse[bool]:
    yield from calls.source.skip_space()
    return (yield from calls.source.peek()) == "{"


def _read_key(calls: Calls) -> Parse[str | None]:
    """The next key of the object and its colon; None at the end of the object."""
    source = calls.source
    yield from source.skip_space()
    yield from source.literal(",")
    yield from source.skip_space()
    if (yield from source.literal("}")):
        return None
    if (yield from source.peek()) != '"':
        raise NotACallError
    key = yield from read_value(source, ":,}")
    yield from source.expect(":")
    return _decoded(key)


def _checked_name(calls: Calls, value: str) -> str:
    name = _decoded(value)
    calls.check_name(name)
    return name


def _held_arguments(value: str) -> str:
    """The object that a value of another type than that stands for."""
    text = _decoded(value) if value.startswith('"') else value
    if text.strip() in _NOTHING:
        return "{}"
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise NotACallError
    return text


def _decoded(text: str) -> str:
    """The string that a JSON text is; what is not one is no call's."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise NotACallError from None
    if not isinstance(value, str):
        raise NotACallError
    return value
