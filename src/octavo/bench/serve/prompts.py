"""Prompts of a wanted length: token ids, text that a tokenizer cuts into exactly so many tokens, or plain words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from octavo.bench.serve.plan import Prompt
from octavo.errors import UsageError
from octavo.text.tokenizer import Tokenizer

Pieces = list[Any]
"""Token ids or words."""

ENOUGH_WORDS = 5000
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "zy")


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Beginnings that prompts share, as system prompts are: ``count`` different ones of ``length`` tokens each."""

    length: int = 0
    count: int = 1


NO_PREFIX = Prefixes()


@dataclass(frozen=True, slots=True)
class PromptMaker:
    """Makes prompts of pieces that count one token each.

    Attributes:
        draw: random pieces, so many.
        join: makes a prompt of them.
        overhead: tokens that the server adds to each prompt (BOS).
    """

    draw: Callable[[random.Random, int], Pieces]
    join: Callable[[Pieces], Prompt]
    overhead: int = 0

    def make(self, rng: random.Random, lengths: Sequence[int], prefixes: Prefixes) -> list[Prompt]:
        """Prompts of the ``lengths``, in tokens; a shared prefix comes on top.

        Raises:
            UsageError: a prompt would have to be shorter than what the server adds.
        """
        shared = [self.draw(rng, prefixes.length) for _ in range(prefixes.count)]
        return [self._one(rng, length, rng.choice(shared)) for length in lengths]

    def _one(self, rng: random.Random, length: int, prefix: Pieces) -> Prompt:
        own = length - self.overhead
        if own < 1:
            least = self.overhead + 1
            raise UsageError(f"prompts of {length} tokens; accepted: from {least}, as the tokenizer adds some")
        return self.join([*prefix, *self.draw(rng, own)])


def token_ids(vocab_size: int) -> PromptMaker:
    """Prompts as token ids below ``vocab_size``."""
    return PromptMaker(lambda rng, count: rng.choices(range(vocab_size), k=count), lambda ids: ids)


def plain_words() -> PromptMaker:
    """Words of three syllables. A tokenizer cuts each into two or three tokens: lengths are in words."""
    return PromptMaker(lambda rng, count: ["".join(rng.choices(_SYLLABLES, k=3)) for _ in range(count)], _spaced)


def exact_words(tokenizer: Tokenizer) -> PromptMaker:
    """Words that are one token each, also behind each other.

    Raises:
        UsageError: the tokenizer has none.
    """
    words = list(islice(_whole_words(tokenizer), ENOUGH_WORDS))
    if not words:
        raise UsageError("the tokenizer has no words that are one token each; accepted without it: --prompt-ids")
    # A word's token has its space in it; SentencePiece puts one before the first word itself.
    alone = len(tokenizer.encode(f" {words[0]}", add_special_tokens=False)) == 1
    overhead = len(tokenizer.encode(""))
    return PromptMaker(lambda rng, count: rng.choices(words, k=count), _behind_spaces if alone else _spaced, overhead)


def _whole_words(tokenizer: Tokenizer) -> Iterator[str]:
    """Words of letters, without the space that is part of their token, as they are cut inside a text."""
    start = len(tokenizer.encode(" a", add_special_tokens=False))
    for token_id in range(tokenizer.vocab_size):
        word = tokenizer.token_bytes(token_id)
        if word[:1] == b" " and word[1:].isalpha() and token_id not in tokenizer.special_ids:
            text = word.decode("ascii")
            if tokenizer.encode(" a" + text + text, add_special_tokens=False)[start:] == [token_id] * 2:
                yield text[1:]


def _spaced(words: Pieces) -> Prompt:
    return " ".join(words)


def _behind_spaces(words: Pieces) -> Prompt:
    return "".join(f" {word}" for word in words)
