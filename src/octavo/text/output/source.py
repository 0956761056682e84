"""The text of one completion as it comes, and the ways to read on in it.

What reads is a generator: it yields when it needs more text than there is, and is resumed when some has come. So
a reader is written as if all the text were there, and cannot tell how it was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Parse = Generator[None, None, T]
"""Reads, waits by yielding, and returns a ``T``."""

MAX_HELD = 1 << 16
"""Characters that are held back at most, to find out whether they are a call. What is longer is none."""

MAX_SPACE = 64
"""Characters of white space that belong to the marker that they stand beside."""


class NotACallError(Exception):
    """What was read since the last ``take`` is no call, or the text ended within it."""


class Source:
    """Text that was pushed and not taken yet.

    Attributes:
        text: all of that.
        at: how far it has been read. A position counts from the last ``take``, so that it does not hang on how
            the text was cut.
        ended: no more will come.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False

    def push(self, text: str) -> None:
        self.text += text

    def take(self) -> str:
        """What was read since the last time."""
        taken, self.text, self.at = self.text[: self.at], self.text[self.at :], 0
        return taken

    def advance(self, to: int) -> None:
        """Have read up to ``to``. Raises ``NotACallError`` where too much would be held."""
        self.at = min(to, MAX_HELD)
        if to > MAX_HELD:
            raise NotACallError

    def peek(self) -> Parse[str]:
        """The next character, without reading it. Raises ``NotACallError`` at the end of the text."""
        while self.at == len(self.text):
            if self.ended:
                raise NotACallError
            yield
        return self.text[self.at]

    def more(self) -> Parse[None]:
        """Wait for text beyond what there is, all of which will be held. Raises as ``peek`` and ``advance`` do."""
        if self.ended or len(self.text) > MAX_HELD:
            self.advance(len(self.text))
            raise NotACallError
        yield

    def skip_space(self) -> Parse[None]:
        limit = self.at + MAX_SPACE
        while self.at < limit:
            if self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return
                self.at += 1
            elif self.ended:
                return
            else:
                yield

    def literal(self, wanted: str) -> Parse[bool]:
        """Read ``wanted`` if it comes next, else nothing."""
        while True:
            there = self.text[self.at : self.at + len(wanted)]
            if there == wanted:
                self.advance(self.at + len(wanted))
                return True
            if self.ended or not wanted.startswith(there):
                return False
            yield

    def expect(self, wanted: str) -> Parse[None]:
        """Skip white space and read ``wanted``; anything else is no call."""
        yield from self.skip_space()
        if not (yield from self.literal(wanted)):
            raise NotACallError

    def until(self, wanted: str, limit: int = MAX_HELD) -> Parse[str]:
        """Read what stands before ``wanted``, and not that itself; no call if it is longer than ``limit``."""
        start = searched = self.at
        while (found := self.text.find(wanted, searched, start + limit + len(wanted))) < 0:
            if len(self.text) >= start + limit + len(wanted):
                self.advance(start + limit)
                raise NotACallError
            searched = max(start, len(self.text) - len(wanted) + 1)
            yield from self.more()
        self.advance(found)
        return self.text[start:found]
