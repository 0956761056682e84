"""Finds where a value ends, by its quotes and brackets alone: what stands between them is for others to judge."""

from __future__ import annotations

import re
from functools import lru_cache

from octavo.text.output.source import NotACallError, Parse, Source

_CLOSING = {"{": "}", "[": "]", "(": ")"}


class Nesting:
    """How deep a text is in brackets and strings.

    Args:
        quotes: the characters that begin and end strings.
        stops: characters that end the value, outside of all brackets and strings. Without any, the value ends with the
            bracket that it began with.

    Attributes:
        broken: a bracket was closed that is not the one that was open.
    """

    def __init__(self, quotes: str = '"', stops: str = "") -> None:
        self._quotes = quotes
        self._stops = stops
        self._open: list[str] = []
        self._quote = ""
        self._skip = 0
        self.broken = False

    def scan(self, text: str, at: int) -> int:
        """Go on with the characters of ``text`` from ``at`` on; return where the value ends, or -1 if it goes on."""
        at, self._skip = at + self._skip, 0
        while (found := _marks(self._quote, self._quotes, self._stops).search(text, at)) is not None:
            at = found.end()
            if found[0] == "\\":
                at += 1
            elif found[0] in self._quotes:
                self._quote = "" if self._quote else found[0]
            elif not self._open and found[0] in self._stops:
                return found.start()
            elif found[0] in _CLOSING:
                self._open.append(_CLOSING[found[0]])
            elif found[0] not in _CLOSING.values():
                continue
            elif not self._open or self._open.pop() != found[0]:
                self.broken = True
                return found.start()
            elif not self._open and not self._stops:
                return at
        self._skip = max(0, at - len(text))
        return -1


@lru_cache
def _marks(quote: str, quotes: str, stops: str) -> re.Pattern[str]:
    """What matters within a string that ``quote`` began, or outside of any."""
    return re.compile(f"[{re.escape(chr(92) + quote if quote else quotes + stops + '{}[]()')}]")


def read_value(source: Source, stops: str, quotes: str = '"') -> Parse[str]:
    """Read a value up to one of ``stops``; it is held until then. Returns it without the white space around it."""
    start, at, nesting = source.at, source.at, Nesting(quotes, stops)
    while (end := nesting.scan(source.text, at)) < 0:
        at = len(source.text)
        yield from source.more()
    source.advance(end)
    if nesting.broken:
        raise NotACallError
    return source.text[start:end].strip()
