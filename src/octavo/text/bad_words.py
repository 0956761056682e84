"""Forbidden words as token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class _Encoder(Protocol):
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


def tokenize_bad_words(tokenizer: _Encoder, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Token sequences which spell ``words``, at the start of a text and after a space (as vLLM does).

    A word in the middle of a text is usually one token with the space in front of it, so both spellings are forbidden.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word.lstrip(), " " + word.lstrip()):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if ids:
                sequences[ids] = None
    return tuple(sequences)
