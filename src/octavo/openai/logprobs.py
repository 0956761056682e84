"""Log-probabilities in OpenAI's two shapes: the chat's, and the older one of completions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from octavo.outputs import Logprob, Logprobs

FLOOR = -9999.0
"""Stands for minus infinity, which JSON does not have."""

TokenBytes = Callable[[int], bytes]
"""Token id -> the bytes that it writes."""


class TopLogprob(msgspec.Struct):
    """One of the likeliest tokens. ``bytes`` are exact where ``token`` cannot be: a token may be half a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer, and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one entry for each token. ``text_offset`` is in characters of the joined ``tokens``.

    An echoed prompt's first token has null for its log-probabilities, as nothing predicts it.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(
    ids: Sequence[int], logprobs: Sequence[Logprobs], top: int, written: TokenBytes | None
) -> ChatLogprobs:
    """The chat's shape. ``top`` is how many likeliest tokens were asked for."""
    return ChatLogprobs([_token(i, at, top, written) for i, at in zip(ids, logprobs, strict=True)])


def completion_logprobs(
    ids: Sequence[int], logprobs: Sequence[Logprobs | None], written: TokenBytes | None, offset: int = 0
) -> CompletionLogprobs:
    """The completions' shape: the chosen token stands in its place's dictionary even if it is not a likely one.

    ``offset`` is where the first token begins, in characters.
    """
    tokens = [token_text(i, written) for i in ids]
    return CompletionLogprobs(
        tokens,
        [None if at is None else finite(at[i].logprob) for i, at in zip(ids, logprobs, strict=True)],
        [None if at is None else {token_text(i, written): finite(e.logprob) for i, e in at.items()} for at in logprobs],
        list(accumulate(map(len, tokens), initial=offset))[: len(tokens)],
    )


def prompt_logprobs(logprobs: Iterable[Logprobs | None]) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's shape: token id -> logprob, rank and text; null for the first token."""
    return [None if at is None else {str(i): _entry(logprob) for i, logprob in at.items()} for at in logprobs]


def token_text(token_id: int, written: TokenBytes | None) -> str:
    """The token's text; ``bytes:\\xe2\\x80`` if its bytes are no text, ``token_id:5`` without a tokenizer."""
    if written is None:
        return f"token_id:{token_id}"
    data = written(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    return max(logprob, FLOOR)


def _token(chosen: int, at: Logprobs, top: int, written: TokenBytes | None) -> TokenLogprob:
    ranked = sorted((item for item in at.items() if item[1].rank <= top), key=lambda item: item[1].rank)
    best = [TopLogprob(*_named(i, logprob, written)) for i, logprob in ranked]
    return TokenLogprob(*_named(chosen, at[chosen], written), best)


def _named(token_id: int, logprob: Logprob, written: TokenBytes | None) -> tuple[str, float, list[int] | None]:
    data = None if written is None else list(written(token_id))
    return token_text(token_id, written), finite(logprob.logprob), data


def _entry(logprob: Logprob) -> dict[str, Any]:
    text = logprob.decoded_token
    return {"logprob": finite(logprob.logprob), "rank": logprob.rank, "decoded_token": text}
