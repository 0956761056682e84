"""Where completions stand in their grammars, and which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence

import llguidance.numpy
import numpy as np
from llguidance import LLExecutor, LLMatcher

from octavo.grammar.source import explain
from octavo.grammar.vocabulary import Vocabulary
from octavo.structured_outputs import StructuredOutputs

_FEW = 4
"""So many masks are made sooner in this thread than by handing them to others."""


class Matcher:
    """One completion's place in its grammar.

    Attributes:
        form: what it follows.
        mask: bits of the tokens that may come next, ``Vocabulary.mask_bytes``; bit i % 8 of byte i // 8 is token i.
        over: the grammar has come to its end and leaves no choice but to end, which no token of the request's says.
        error: why it cannot go on, or an empty string.
    """

    __slots__ = ("_ends", "_library", "error", "form", "mask", "over")

    def __init__(self, form: StructuredOutputs, start: LLMatcher, ends: np.ndarray | None) -> None:
        """``start`` is copied; ``ends`` are the bits of the request's end tokens, uint8, or None if it has none."""
        self.form = form
        self._library = start.deep_copy()
        self._ends = ends
        self.mask, self.over, self.error = b"", False, ""

    def take(self, token_id: int) -> None:
        """Go on by a token that the last mask allowed. The mask is then out of date."""
        self._library.consume_token(token_id)

    def take_mask(self, row: np.ndarray, vocabulary: Vocabulary) -> None:
        """Take over what the library wrote to ``row`` int32 ``[row_words]``."""
        if self._library.is_error():
            why = explain(self._library.get_error())
            self.error = f"the {self.form.kind} of structured_outputs cannot go on after what was written: {why}"
            return
        bits = row.view(np.uint8)
        byte, bit = vocabulary.end >> 3, 1 << (vocabulary.end & 7)
        may_end = bool(bits[byte] & bit)
        bits[byte] &= 255 - bit
        bits = bits[: vocabulary.mask_bytes]
        if may_end and self._ends is not None:
            bits |= self._ends
        self.over = may_end and self._ends is None and not bits.any()
        self.mask = bits.tobytes()


class MaskMaker:
    """Makes the masks of several matchers at once, in several threads where that is sooner."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._executor: LLExecutor | None = None

    def update(self, matchers: Sequence[Matcher]) -> None:
        """Bring each matcher's ``mask``, ``over`` and ``error`` up to date."""
        rows = np.zeros((len(matchers), self._vocabulary.row_words), np.int32)
        if len(matchers) <= _FEW:
            for i, matcher in enumerate(matchers):
                llguidance.numpy.fill_next_token_bitmask(matcher._library, rows, i)
        else:
            self._executor = self._executor or LLExecutor()
            pairs = [(matcher._library, i) for i, matcher in enumerate(matchers)]
            llguidance.numpy.fill_next_token_bitmask_par(self._executor, pairs, rows)
        for row, matcher in zip(rows, matchers, strict=True):
            matcher.take_mask(row, self._vocabulary)
