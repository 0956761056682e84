"""The model's tokens as llguidance wants them: the bytes that each one writes."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from octavo.grammar.checked import special_texts
from octavo.text.tokenizer import Tokenizer


class Vocabulary:
    """A tokenizer behind the library's interface, padded to the rows of the model.

    Which tokens end a completion is a matter of each request, so the grammar's end is a token of its own, one behind
    the last that the model has. Special tokens are never text; only a grammar that names one (``<|im_end|>``) gets it.

    Attributes:
        size: tokens of the model.
        end: the id that stands for the grammar's end.
        mask_bytes: of the masks that requests get: a bit for each token, whole 32-bit words.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        """``tokenizer`` may know fewer tokens than the model's ``size``, or more."""
        self._tokenizer = tokenizer
        self.size = self.end = size
        self.mask_bytes = -(-size // 32) * 4

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """The texts of the special tokens."""
        return special_texts(self._tokenizer, self.size)

    @cached_property
    def library(self) -> LLTokenizer:
        """The library's tokenizer. To make it takes a second for a large vocabulary."""
        return LLTokenizer(TokenizerWrapper(_Source(self._tokenizer, self.size)))

    @cached_property
    def row_words(self) -> int:
        """32-bit words of a mask as the library makes it: with the end."""
        return -(-(self.size + 1) // 32)

    def bits_of(self, token_ids: tuple[int, ...]) -> np.ndarray:
        """A mask with only these tokens, uint8 ``[mask_bytes]``."""
        bits = np.zeros(8 * self.mask_bytes, np.uint8)
        bits[list(token_ids)] = 1
        return np.packbits(bits, bitorder="little")


class _Source:
    """What `TokenizerWrapper` asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        known = min(size, tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(i) for i in range(known)] + [b""] * (size - known) + [b"<end>"]
        self.special_token_ids = [i for i in sorted(tokenizer.special_ids) if i < size] + [size]
        self.eos_token_id = size
        self._tokenizer, self._size = tokenizer, size
        self._longest = max(map(len, self.tokens))
        self._ids: dict[bytes, int] = {}

    def __call__(self, text: str | bytes) -> list[int]:
        """How the model would write a text that a grammar leaves no choice about."""
        data = text.encode() if isinstance(text, str) else text
        found = self._encode(data)
        return self._greedy(data) if found is None else found

    def _encode(self, data: bytes) -> list[int] | None:
        """The tokenizer's way; None if that writes something else (a dummy prefix), or special tokens."""
        tokenizer = self._tokenizer
        ids = tokenizer.encode(data.decode(), add_special_tokens=False)
        plain = all(i < self._size and i not in tokenizer.special_ids for i in ids)
        return ids if plain and b"".join(map(tokenizer.token_bytes, ids)) == data else None

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token each time; it ends early where no token goes on."""
        if not self._ids:
            special = set(self.special_token_ids)
            self._ids = {token: i for i, token in enumerate(self.tokens) if token and i not in special}
        found, start = [], 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is None:
                break
            found.append(self._ids[data[start:end]])
            start = end
        return found
