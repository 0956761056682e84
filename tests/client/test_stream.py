"""News of one request: joined while nobody reads."""

from __future__ import annotations

import asyncio

import pytest

from octavo.client.stream import Stream
from octavo.client.verbs import EngineDeadError
from octavo.client.wire import End, Piece
from octavo.outputs import Logprob, RequestMetrics


def piece(text: str, *tokens: int, index: int = 0, finish_reason: str | None = None, logprobs: bool = False) -> Piece:
    entries = [{token: Logprob(-1.0, 1)} for token in tokens] if logprobs else None
    return Piece(1, index, text, list(tokens), entries, -1.0 if logprobs else None, finish_reason, None)


def new_stream() -> Stream:
    return Stream(1, "r", [5], 0.0)


def test_news_that_pile_up_are_joined() -> None:
    async def run() -> None:
        stream = new_stream()
        stream.take_piece(piece("a", 1, logprobs=True))
        stream.take_piece(piece("x", 7, index=1))
        stream.take_piece(piece("b", 2, 3, logprobs=True))
        output = await stream.next()
        assert not output.finished
        first, second = output.outputs
        assert (first.index, first.text, first.token_ids) == (0, "ab", [1, 2, 3])
        assert [list(entry) for entry in first.logprobs or []] == [[1], [2], [3]]
        assert (second.index, second.text, second.token_ids) == (1, "x", [7])
        stream.take_piece(piece("c", 4, finish_reason="stop"))
        stream.take_end(End(1, RequestMetrics(num_blocks=3)))
        output = await stream.next()
        assert (output.finished, output.metrics.num_blocks) == (True, 3)
        assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("c", "stop")

    asyncio.run(run())


def test_who_waits_is_woken_once_there_is_something() -> None:
    async def run() -> None:
        stream = new_stream()
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        stream.take_piece(piece("a", 1))
        assert (await waiting).outputs[0].text == "a"

    asyncio.run(run())


def test_an_error_comes_after_what_came_before_it() -> None:
    async def run() -> None:
        stream = new_stream()
        stream.take_piece(piece("a", 1))
        stream.fail(EngineDeadError("gone"))
        output = await stream.next()
        assert (output.outputs[0].text, output.finished) == ("a", False)
        for _ in range(2):
            with pytest.raises(EngineDeadError, match="gone"):
                await stream.next()

    asyncio.run(run())
