from __future__ import annotations

import pytest

from octavo.cli.shown import ShownAnswer
from octavo.text.output.formats import OutputFormat, reasoning_format
from octavo.text.output.router import OutputRouter

TEXT = "<think>\nhm, so\n</think>\n\nYes. No."


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("styled", [True, False])
def test_reasoning_is_dim_and_apart_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], styled: bool, size: int
) -> None:
    shown = ShownAnswer(OutputRouter(OutputFormat(reasoning_format("think"))), styled)
    for i in range(0, len(TEXT), size):
        shown.feed(TEXT[i : i + size])
    shown.finish()
    out = capsys.readouterr().out
    if styled:
        before, after = out.rsplit("\x1b[0m", 1)
        assert before.replace("\x1b[0m", "").replace("\x1b[2m", "") == "hm, so"
        assert before.startswith("\x1b[2mh")
        assert after == "\n\nYes. No."
    else:
        assert out == TEXT
    assert (shown.reasoning, shown.content) == ("hm, so", "Yes. No.")
