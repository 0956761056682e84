"""Splits the text of one completion into reasoning, answer and tool calls, while it comes."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Sequence

from octavo.text.output.calls import Calls, Function
from octavo.text.output.formats import OutputFormat, ReasoningFormat, ToolFormat
from octavo.text.output.markers import Markers
from octavo.text.output.pieces import Content, Piece, Reasoning, joined
from octavo.text.output.source import NotACallError, Parse, Source

_LETTERS = string.ascii_letters + string.digits


class OutputRouter:
    """Reads the text of one completion and tells what each part of it is.

    However the text is cut into deltas, the pieces of all ``feed`` calls and of ``finish``, put together, are the
    same. Every piece comes as soon as it is certain: arguments stream while they are written.

    - White space beside a marker belongs to the marker, up to 64 characters of it.
    - What looks like a call and is none (no JSON, an unknown function, cut off before its arguments began) is content,
      to the letter. It is held until that is known, and at most 65,536 characters.
    - From its first argument on, a call stays one. If its brackets do not match or the text ends, it ends incomplete,
      and what follows is content.
    - Reasoning stands at the beginning, and ends only with its marker.

    Args:
        format: how the model writes.
        functions: those that may be called; None: any name. Empty: no calls are looked for.
        in_reasoning: the prompt has opened the reasoning already; see `begins_in_reasoning`.
        parallel: tell all calls; False drops all but the first.
        new_id: makes the ids of calls whose format has none; None: random ones.
    """

    def __init__(
        self,
        format: OutputFormat,
        functions: Sequence[Function] | None = None,
        *,
        in_reasoning: bool = False,
        parallel: bool = True,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._source = Source()
        self._pieces: list[Piece] = []
        self._format = None if functions is not None and not functions else format.tools
        by_name = None if functions is None else {function.name: function for function in functions}
        new_id = new_id or (lambda: random_call_id(self._format))
        self._calls = Calls(self._source, self._emit, by_name, new_id, parallel)
        self._parse = self._read(format.reasoning, in_reasoning)
        next(self._parse)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that became certain with ``text``, the next delta."""
        if text:
            self._source.push(text)
            next(self._parse)
        return self._told()

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the text."""
        self._source.ended = True
        for _ in self._parse:
            pass
        return self._told()

    def _told(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _emit(self, piece: Piece) -> None:
        joined(self._pieces, piece)

    def _read(self, reasoning: ReasoningFormat | None, in_reasoning: bool) -> Parse[None]:
        yield
        if reasoning is not None:
            yield from self._source.skip_space()
            if (yield from self._source.literal(reasoning.start)) or in_reasoning:
                yield from self._read_reasoning(reasoning)
            self._source.at = 0
        yield from self._read_answer()

    def _read_reasoning(self, reasoning: ReasoningFormat) -> Parse[None]:
        yield from self._source.skip_space()
        self._source.take()
        if (yield from self._pass_on(Reasoning, Markers([reasoning.end]))):
            yield from self._source.skip_space()
            self._source.take()

    def _read_answer(self) -> Parse[None]:
        """Content and calls by turns. A bare call can begin at the start and after another one."""
        format, after_call = self._format, True
        openings = Markers(format.openings) if format and format.openings else None
        while not self._source.ended or self._source.text:
            is_bare = after_call and format is not None and format.bare and (yield from self._begins_bare())
            begins = is_bare or (yield from self._pass_on(Content, openings))
            after_call = begins and format is not None and (yield from self._read_calls(format))

    def _begins_bare(self) -> Parse[bool]:
        source = self._source
        yield from source.skip_space()
        if (yield from source.literal(";")):
            yield from source.skip_space()
        begins = (yield from source.literal("{")) or (yield from source.literal("["))
        source.at = 0 if not begins else source.at - 1
        return begins

    def _read_calls(self, format: ToolFormat) -> Parse[bool]:
        """Read what follows an opening marker that was just read. False if it was none: then it is content."""
        source = self._source
        try:
            if format.section[0] and source.text[: source.at].endswith(format.section[0]):
                yield from source.expect(format.start.strip())
            yield from format.shape.read(self._calls)
        except NotACallError:
            self._calls.break_off()
            if source.at:
                self._emit(Content(source.take()))
            return False
        for marker in filter(None, (*format.ends, format.section[1])):
            yield from source.skip_space()
            yield from source.literal(marker.strip())
        yield from source.skip_space()
        source.take()
        return True

    def _pass_on(self, kind: type[Reasoning | Content], markers: Markers | None) -> Parse[bool]:
        """Tell text up to the next marker, and read that; False at the end of the text."""
        source = self._source
        while True:
            shown, end = markers.cut(source.text) if markers else (len(source.text), -1)
            source.at = len(source.text) if source.ended and end < 0 else shown
            if source.at:
                self._emit(kind(source.take()))
            if end >= 0:
                source.at = end - shown
                return True
            if source.ended:
                return False
            yield


def random_call_id(format: ToolFormat | None) -> str:
    """An id for a call, of the form that the format's chat templates accept."""
    if format is not None and format.id_letters:
        return "".join(secrets.choice(_LETTERS) for _ in range(format.id_letters))
    return f"call_{secrets.token_hex(12)}"


def begins_in_reasoning(prompt: str, format: OutputFormat) -> bool:
    """Whether a chat template has opened the reasoning in the prompt, as many do."""
    return format.reasoning is not None and prompt.rstrip().endswith(format.reasoning.start)


def read_whole(router: OutputRouter, text: str) -> list[Piece]:
    """The pieces of a text that is all there, each as long as can be."""
    pieces = list[Piece]()
    for piece in (*router.feed(text), *router.finish()):
        joined(pieces, piece)
    return pieces
