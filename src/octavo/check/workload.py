"""The prompts of a check: pieces of one text, so that a model's predictions are sharp, or random tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass

from octavo.errors import UsageError
from octavo.text.tokenizer import Tokenizer

TEXT = """\
A printer takes one large sheet and prints sixteen pages on it, eight on each side. They do not stand in the order in
which they will be read: some are upside down, and the second page is far away from the first. Then the sheet is folded
once, twice, and a third time, and when its edges are cut, the pages have found their places. Such a booklet is called
an octavo, and a book is many of them, sewn together at the back. The size of a page follows from the size of the sheet;
the art is to know, before the press is set in motion, where each page must go. A mistake is not seen until the knife
has done its work, and by then a thousand sheets are dry. So printers fold a small sheet of paper first, number its
pages with a pencil, unfold it, and look. It takes a minute. In 1620 the proofreader of a workshop in Antwerp noted that
of every hundred sheets that were spoiled, ninety had been spoiled by someone who had been sure. def fold(sheet): return
[page for side in sheet for page in side if page is not None]  # and then count: 1, 2, 3, 5, 8, 13, 21, 34. The king's
daughter asked what the number of all these pages was; nobody could tell her, because nobody had yet turned the last.
"""
"""Prose, a date, a little code, and numbers."""

LENGTHS = (1, 5, 16, 33, 100, 64, 250)
"""Tokens of the prompts: within a block of 16, exactly one, across borders. Two of them begin alike (the last but two
and the last but one), as in a chat that goes on."""
QUICK_LENGTHS = (5, 33, 64, 50)


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts as token ids, and how many tokens each is to be continued by."""

    prompts: list[list[int]]
    max_tokens: int

    @property
    def longest(self) -> int:
        return max(map(len, self.prompts)) + self.max_tokens


def make_workload(
    tokenizer: Tokenizer | None, vocab_size: int, max_length: int, *, quick: bool = False, seed: int = 0
) -> Workload:
    """Prompts that fit, with their continuations, into ``max_length`` tokens.

    Raises:
        UsageError: that leaves no room for any.
    """
    max_tokens = 8 if quick else 24
    lengths = [n for n in (QUICK_LENGTHS if quick else LENGTHS) if n + max_tokens < max_length]
    if not lengths:
        least = min(QUICK_LENGTHS if quick else LENGTHS) + max_tokens + 1
        raise UsageError(f"requests of at most {max_length} tokens are too short; accepted: {least} and more")
    stream = _tokens(tokenizer, vocab_size, random.Random(seed))
    starts = [17 * i for i in range(len(lengths))]
    if len(lengths) > 2:
        starts[-2] = starts[-3]
    needed = max(start + length for start, length in zip(starts, lengths, strict=True))
    stream *= -(-needed // len(stream))
    return Workload([stream[s : s + n] for s, n in zip(starts, lengths, strict=True)], max_tokens)


def _tokens(tokenizer: Tokenizer | None, vocab_size: int, rng: random.Random) -> list[int]:
    if tokenizer is not None:
        ids = tokenizer.encode(TEXT, add_special_tokens=False)
        if ids and max(ids) < vocab_size:
            return ids
    return [rng.randrange(vocab_size) for _ in range(400)]
