"""How an answer is shown while it comes."""

from __future__ import annotations

import sys

import click

from octavo.text.output.pieces import Content, Piece, Reasoning
from octavo.text.output.router import OutputRouter


class ShownAnswer:
    """One answer on standard output.

    On a terminal its reasoning is dim, and an empty line follows it. Elsewhere the text stands as the model wrote it.

    Args:
        router: of a format without tool calls.
        styled: as on a terminal.

    Attributes:
        content, reasoning: what has come of them.
    """

    def __init__(self, router: OutputRouter, styled: bool) -> None:
        self._router = router
        self._styled = styled
        self.content = ""
        self.reasoning = ""

    def feed(self, text: str) -> None:
        """More of the answer's text."""
        self._show(text, self._router.feed(text))

    def finish(self) -> None:
        """The text is over."""
        self._show("", self._router.finish())

    def _show(self, text: str, pieces: list[Piece]) -> None:
        if not self._styled:
            click.echo(text, nl=False)
        for piece in pieces:
            if isinstance(piece, Reasoning):
                self._show_reasoning(piece.text)
            elif isinstance(piece, Content):
                self._show_content(piece.text)
        sys.stdout.flush()

    def _show_reasoning(self, text: str) -> None:
        self.reasoning += text
        if self._styled:
            click.secho(text, nl=False, dim=True, color=True)

    def _show_content(self, text: str) -> None:
        between = "\n\n" if self.reasoning and not self.content else ""
        self.content += text
        if self._styled:
            click.echo(between + text, nl=False)
