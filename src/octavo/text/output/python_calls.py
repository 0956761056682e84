"""Calls that are a Python list of calls: ``[get_weather(city="Paris", days=3)]``."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass

from octavo.text.output.calls import Calls, Function, is_json, properties_of, read_name, required_of
from octavo.text.output.lark import Speller, json_value, quoted
from octavo.text.output.nesting import read_value
from octavo.text.output.source import NotACallError, Parse

_MAX_NAME = 512


@dataclass(frozen=True)
class PythonShape:
    """A list of calls with keyword arguments that are literals, of Python or of JSON. They are told as JSON."""

    as_list: bool = True

    def read(self, calls: Calls) -> Parse[None]:
        source = calls.source
        yield from source.expect("[")
        yield from self._read_call(calls)
        yield from source.skip_space()
        while (yield from source.literal(",")):
            yield from self._read_call(calls)
            yield from source.skip_space()
        yield from source.expect("]")

    @property
    def markers(self) -> tuple[str, ...]:
        return ()

    def rules(self, symbol: str, function: Function, spell: Speller) -> str:
        """An argument that is not required may be left out, which moves the commas: ``_first_i`` are the arguments from
        the i-th on if none was written before them, ``_next_i`` if some was."""
        properties, required = properties_of(function.parameters), required_of(function.parameters)
        lines = [f'{symbol}: {quoted(function.name + "(")} {symbol}_first_0 ")"']
        for i, (key, value) in enumerate(properties.items()):
            argument, after = f"{quoted(key + '=')} {json_value(value, function.parameters)}", f"{symbol}_next_{i + 1}"
            skip = key not in required
            lines.append(f"{symbol}_first_{i}: {argument} {after}" + (f" | {symbol}_first_{i + 1}" if skip else ""))
            lines.append(f'{symbol}_next_{i}: ", " {argument} {after}' + (f" | {after}" if skip else ""))
        ends = (f'{symbol}_{kind}_{len(properties)}: ""' for kind in ("first", "next"))
        return "\n".join([*lines, *ends]) + "\n"

    def _read_call(self, calls: Calls) -> Parse[None]:
        source = calls.source
        yield from source.skip_space()
        name = yield from read_name(calls)
        yield from source.expect("(")
        calls.start(name)
        before = "{"
        while (key := (yield from self._read_key(calls))) is not None:
            value = _as_json((yield from read_value(source, ",)", "\"'")))
            source.take()
            calls.arguments(f"{before}{json.dumps(key, ensure_ascii=False)}: {value}")
            before = ", "
        calls.arguments("{}" if before == "{" else "}")
        calls.end()

    def _read_key(self, calls: Calls) -> Parse[str | None]:
        """The next argument's name; None after the bracket that ends the call."""
        source = calls.source
        yield from source.skip_space()
        yield from source.literal(",")
        yield from source.skip_space()
        if (yield from source.literal(")")):
            source.take()
            return None
        key = (yield from source.until("=", _MAX_NAME)).strip()
        if not key.isidentifier():
            raise NotACallError
        yield from source.expect("=")
        return key


def _as_json(text: str) -> str:
    """The JSON text of a literal of Python's, or one of JSON's."""
    try:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    if not is_json(text):
        raise NotACallError
    return text
