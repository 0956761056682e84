"""Finds markers in a text that arrives in pieces, and what may become one at its end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.text.output.source import MAX_SPACE


class Markers:
    """A few strings, none of which begins with another one."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, markers)))
        self._prefixes = {marker[:length] for marker in markers for length in range(1, len(marker))}
        self._longest = max(map(len, markers)) - 1
        self._first = re.compile(f"[{re.escape(''.join({marker[0] for marker in markers}))}]")

    def cut(self, text: str) -> tuple[int, int]:
        """How much of ``text`` stands before a marker and the white space beside it, and where the marker ends.

        Without a marker the second is -1, and the first leaves out what may be the beginning of one.
        """
        found = self._pattern.search(text)
        before = found.start() if found else len(text) - self._begun(text)
        shown = len(text[:before].rstrip())
        return max(shown, before - MAX_SPACE), found.end() if found else -1

    def _begun(self, text: str) -> int:
        """The length of the longest end of ``text`` that a marker begins with."""
        first = self._first.search(text, max(0, len(text) - self._longest))
        for start in range(first.start() if first else len(text), len(text)):
            if text[start:] in self._prefixes:
                return len(text) - start
        return 0
