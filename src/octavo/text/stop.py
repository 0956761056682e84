"""Stop strings: finds where a text that arrives in pieces ends, and holds back what may be part of one.

All stop strings are matched at once by one automaton (Aho and Corasick, CACM 18(6), 1975), one amortised step
a character, so that no choice of strings makes it slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from octavo.errors import RequestError

MAX_STOP_CHARACTERS = 8192
"""Of all stop strings of a request together; bounds the automaton to a few megabytes."""


class StopAutomaton:
    """The immutable tables of a set of stop strings. Node 0 is the root; a node is a prefix of some string.

    Attributes:
        children: for each node, character -> longer prefix.
        fail: for each node, its longest proper suffix that is a node too.
        depth: for each node, its length in characters.
        match: for each node, the longest stop string that ends here, or an empty one.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.fail = [0]
        self.depth = [0]
        self.match = [""]
        for string in stop:
            self._insert(string)
        self._link()

    def step(self, node: int, char: str) -> int:
        """The longest suffix of (the text of ``node`` + ``char``) that is a node."""
        children = self.children
        while node and char not in children[node]:
            node = self.fail[node]
        return children[node].get(char, 0)

    def _insert(self, string: str) -> None:
        node = 0
        for depth, char in enumerate(string, 1):
            if char not in self.children[node]:
                self.children[node][char] = len(self.children)
                self.children.append({})
                self.fail.append(0)
                self.depth.append(depth)
                self.match.append("")
            node = self.children[node][char]
        self.match[node] = string

    def _link(self) -> None:
        """Set ``fail``, breadth first: it points to shorter nodes, which are linked already."""
        queue = list(self.children[0].values())
        for node in queue:
            self.match[node] = self.match[node] or self.match[self.fail[node]]
            for char, child in self.children[node].items():
                self.fail[child] = self.step(self.fail[node], char)
                queue.append(child)


class StopMatcher:
    """Cuts the text of one request at its first stop string.

    The first is the one that is complete earliest, wherever the borders of the pieces lie; of several that
    end at the same character, the longest.

    Args:
        stop: non-empty strings.
        include: leave the stop string in the text (and hold nothing back, as nothing will be cut).

    Attributes:
        matched: the stop string that was found, or None. After a match no more text comes out.

    Raises:
        RequestError: the strings are too long.
    """

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        if sum(map(len, stop)) > MAX_STOP_CHARACTERS:
            raise RequestError(
                f"the stop strings are too long; at most {MAX_STOP_CHARACTERS} characters in all are accepted"
            )
        self.matched: str | None = None
        self._automaton = _automaton(tuple(stop))
        self._include = include
        self._node = 0
        self._held = ""

    def feed(self, text: str, active: bool = True) -> tuple[str, str | None]:
        """Read the next piece. ``active=False``: a stop string that is complete within it is ignored.

        Returns:
            The text that can be shown now, and ``matched``.
        """
        if self.matched is not None:
            return "", self.matched
        start, text = len(self._held), self._held + text
        self._held = ""
        end = self._scan(text, start, active)
        if self.matched is not None:
            return text[: end if self._include else end - len(self.matched)], self.matched
        return self._hold(text), None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held, self._node = self._held, "", 0
        return held

    def _scan(self, text: str, start: int, active: bool) -> int:
        """Read ``text`` from ``start`` on; return where the match ends."""
        children, match, step = self._automaton.children, self._automaton.match, self._automaton.step
        node = self._node
        for position in range(start, len(text)):
            char = text[position]
            node = children[node].get(char) or (step(node, char) if node else 0)
            if active and match[node]:
                self.matched = match[node]
                return position + 1
        self._node = node
        return len(text)

    def _hold(self, text: str) -> str:
        shown = len(text) - (0 if self._include else self._automaton.depth[self._node])
        self._held = text[shown:]
        return text[:shown]


@lru_cache(maxsize=64)
def _automaton(stop: tuple[str, ...]) -> StopAutomaton:
    return StopAutomaton(stop)
