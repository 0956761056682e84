"""Calls whose arguments stand one by one between tags, as in ``<parameter=city>Paris</parameter>``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.text.output.calls import Calls, Function, Schema, is_json, properties_of, read_name, required_of
from octavo.text.output.lark import Speller, json_value, quoted
from octavo.text.output.markers import Markers
from octavo.text.output.source import Parse

_MAX_NAME = 512
_PYTHON = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class TaggedShape:
    """A head with the function's name, then a tag for each argument. The arguments are told as JSON.

    A value is a string if the function's schema says so; else it is read as JSON, and is a string if it is none. White
    space in the tags stands for any, but of a value's own only a line break on either side belongs to them.

    Attributes:
        head: what stands before and after the name.
        tag: what stands before an argument's name, between that and the value, and after the value.
        end: what is written after the last argument.
    """

    head: tuple[str, str]
    tag: tuple[str, str, str]
    end: str = ""
    as_list: bool = False

    def read(self, calls: Calls) -> Parse[None]:
        before, after = (part.strip() for part in self.head)
        yield from calls.source.expect(before)
        name = yield from read_name(calls)
        yield from calls.source.expect(after)
        calls.start(name)
        calls.arguments("{")
        separator = ""
        while (key := (yield from self._read_key(calls))) is not None:
            calls.arguments(f"{separator}{_json_text(key)}: ")
            yield from self._read_value(calls, properties_of(calls.schema(name)).get(key))
            separator = ", "
        calls.arguments("}")
        calls.end()
        yield from calls.source.literal(self.end.strip())

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.head, *self.tag, self.end)

    def rules(self, symbol: str, function: Function, spell: Speller) -> str:
        before, after = self.head
        tags, rules, required = list[str](), list[str](), required_of(function.parameters)
        for i, key in enumerate(properties_of(function.parameters)):
            tags.append(f"{symbol}_{i}" + ("" if key in required else "?"))
            rules.append(self._tag_rules(f"{symbol}_{i}", key, function.parameters, spell))
        head = spell(before + function.name + after)
        return f"{symbol}: {' '.join([head, *tags, spell(self.end)])}\n" + "".join(rules)

    def _read_key(self, calls: Calls) -> Parse[str | None]:
        """The name of the next argument, with the tags around it; None if something else comes."""
        source = calls.source
        yield from source.skip_space()
        yield from source.peek()
        if not (yield from source.literal(self.tag[0].strip())):
            return None
        first, *others = self.tag[1].split()
        key = yield from source.until(first, _MAX_NAME)
        for part in (first, *others):
            yield from source.expect(part)
        source.take()
        return key.strip()

    def _read_value(self, calls: Calls, schema: Any) -> Parse[None]:
        """A value and its closing tag. A string is told as it comes."""
        yield from calls.source.literal("\n")
        if isinstance(schema, Mapping) and schema.get("type") == "string":
            yield from self._stream_string(calls)
            return
        value = yield from calls.source.until(self.tag[2].strip())
        yield from calls.source.literal(self.tag[2].strip())
        calls.source.take()
        calls.arguments(_as_json(value.strip()))

    def _stream_string(self, calls: Calls) -> Parse[None]:
        source, markers = calls.source, Markers([self.tag[2].strip()])
        source.take()
        calls.arguments('"')
        while (found := markers.cut(source.text))[1] < 0:
            source.at = len(source.text) if source.ended else found[0]
            calls.arguments(_json_text(source.take())[1:-1])
            yield from source.more()
        shown, end = found
        source.at = shown
        calls.arguments(_json_text(source.take())[1:-1])
        source.at = end - shown
        space = source.take().removesuffix(self.tag[2].strip())
        calls.arguments(_json_text(space.removesuffix("\n"))[1:-1] + '"')

    def _tag_rules(self, symbol: str, key: str, schema: Schema, spell: Speller) -> str:
        before, between, after = self.tag
        start, value = spell(before + key + between), properties_of(schema)[key]
        if not isinstance(value, Mapping) or value.get("type") != "string":
            return f"{symbol}: {start} {json_value(value, schema)} {spell(after)}\n"
        if isinstance(value.get("enum"), list):
            choices = " | ".join(quoted(str(choice)) for choice in value["enum"])
            return f"{symbol}: {start} ({choices}) {spell(after)}\n"
        return f"{symbol}: {start} {symbol}_text\n{symbol}_text[lazy]: /(.|\\n)*/ {quoted(after)}\n"


def _as_json(value: str) -> str:
    """``value`` as JSON text: itself if it is some, Python's words for JSON's, else a string."""
    return value if is_json(value) else _PYTHON.get(value) or _json_text(value)


def _json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
