"""Edits of single logits that a request asks for: allowed tokens, bad words, minimum length, biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.reference import sampling as ops
from octavo.kernels.transfer import to_device
from octavo.sampling_params import SamplingParams

T = TypeVar("T")

ALWAYS: int = np.iinfo(np.int64).max
"""Longer than any output."""

_NOTHING = 0, np.empty(0, np.int64)
"""For how many tokens which ones are banned, where none is."""


class BadWords:
    """The bad words of one request and the end of its output, on the device."""

    def __init__(self, words: Sequence[Sequence[int]], output_token_ids: Sequence[int], device: torch.device) -> None:
        """``words`` are token ids, none empty."""
        width = max(len(word) for word in words) - 1
        prefixes = [_right_aligned(word[:-1], width) for word in words]
        self._prefixes = torch.tensor(prefixes, dtype=torch.int64, device=device).view(len(words), width)
        self.last = torch.tensor([word[-1] for word in words], device=device)
        tail = list(output_token_ids[-width:]) if width else []
        self._tail = torch.tensor(_right_aligned(tail, width), dtype=torch.int64, device=device)

    def penalties(self) -> Tensor:
        """What to add to the logits of the words' ``last`` tokens: -inf if that completes the word, or 0."""
        complete = ops.bad_word_endings(self._tail, self._prefixes)
        return torch.zeros_like(self.last, dtype=torch.float32).masked_fill_(complete, -torch.inf)

    def record(self, token: Tensor) -> None:
        """Append one output token, int64 [1]."""
        self._tail = torch.cat([self._tail, token])[1:]


class LogitEdits:
    """All edits of all slots. Only slots that ask for one have an entry, and only these cost time.

    Attributes:
        can_ban_all: the slots that may be left without a token: bad words, and stop tokens before ``min_tokens``, can
            ban all that is allowed. Whether they do in a step depends on the output.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.can_ban_all: set[int] = set()
        self._vocab_size = vocab_size
        self._device = device
        self._allowed: dict[int, np.ndarray] = {}
        self._bad_words: dict[int, BadWords] = {}
        self._until_min_tokens: dict[int, tuple[int, np.ndarray]] = {}
        self._bias: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        self,
        slot: int,
        params: SamplingParams,
        output_token_ids: Sequence[int],
        stop_token_ids: Sequence[int],
        bad_words_token_ids: Sequence[Sequence[int]],
    ) -> None:
        """Take in the edits of ``slot``; ``stop_token_ids`` may not come before ``min_tokens``."""
        self.remove(slot)
        if params.allowed_token_ids is not None:
            self._allowed[slot] = np.unique(np.asarray(params.allowed_token_ids, np.int64))
        if bad_words_token_ids:
            self._bad_words[slot] = BadWords(bad_words_token_ids, output_token_ids, self._device)
        if stop_token_ids and params.min_tokens > len(output_token_ids):
            self._until_min_tokens[slot] = params.min_tokens, np.unique(np.asarray(stop_token_ids, np.int64))
        if params.logit_bias:
            ids, values = zip(*params.logit_bias.items(), strict=True)
            self._bias[slot] = np.asarray(ids, np.int64), np.asarray(values, np.float32)
        if self._bans_cover(slot, bad_words_token_ids):
            self.can_ban_all.add(slot)

    def remove(self, slot: int) -> None:
        """Forget ``slot``."""
        for table in (self._allowed, self._bad_words, self._until_min_tokens, self._bias):
            table.pop(slot, None)
        self.can_ban_all.discard(slot)

    def ends(self, slot: int) -> int:
        """The output length from which on ``slot`` has no edits; ``ALWAYS`` if it will never be without."""
        if any(slot in table for table in (self._allowed, self._bad_words, self._bias)):
            return ALWAYS
        return self._until_min_tokens.get(slot, (0, None))[0]

    def apply(self, logits: Tensor, slots: Sequence[int], num_outputs: np.ndarray) -> None:
        """Edit ``logits`` float32 [S, V] in place; ``num_outputs`` int64 [S] is each slot's output length."""
        if allowed := _pairs(self._allowed, slots):
            ops.keep_only(logits, *self._points(allowed))
        for row, words in _pairs(self._bad_words, slots):
            ops.add_at(logits, torch.full_like(words.last, row), words.last, words.penalties())
        added = self._banned_ends(slots, num_outputs) + [(row, *bias) for row, bias in _pairs(self._bias, slots)]
        if added:
            rows, ids = self._points([(row, ids) for row, ids, _ in added])
            values = to_device(np.concatenate([values for _, _, values in added]), self._device)
            ops.add_at(logits, rows, ids, values)

    def record(self, slots: Sequence[int], tokens: Tensor) -> None:
        """Append one output token, int64 [S], to the output of each of ``slots``."""
        for row, words in _pairs(self._bad_words, slots):
            words.record(tokens[row : row + 1])

    def _bans_cover(self, slot: int, bad_words_token_ids: Sequence[Sequence[int]]) -> bool:
        """Whether all that ``slot`` may have stands among what may be banned."""
        if not bad_words_token_ids and slot not in self._until_min_tokens:
            return False
        _, ends = self._until_min_tokens.get(slot, _NOTHING)
        banned = np.union1d(ends, np.array([word[-1] for word in bad_words_token_ids], np.int64))
        allowed = self._allowed.get(slot)
        return len(banned) == self._vocab_size if allowed is None else bool(np.isin(allowed, banned).all())

    def _banned_ends(self, slots: Sequence[int], num_outputs: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Rows, ids and -inf for rows that have not yet reached ``min_tokens``; forgets those that have."""
        banned = []
        for row, (least, ids) in _pairs(self._until_min_tokens, slots):
            if num_outputs[row] < least:
                banned.append((row, ids, np.full(len(ids), -np.inf, np.float32)))
            else:
                del self._until_min_tokens[slots[row]]
        return banned

    def _points(self, edits: list[tuple[int, np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Rows and token ids, int64 [N] each, of all ids of all edits."""
        rows = np.repeat([row for row, _ in edits], [len(ids) for _, ids in edits])
        ids = np.concatenate([ids for _, ids in edits])
        return to_device(rows, self._device), to_device(ids, self._device)


def _pairs(table: Mapping[int, T], slots: Sequence[int]) -> list[tuple[int, T]]:
    """(row, entry) for each of ``slots`` that has an entry in ``table``."""
    return [(row, table[slot]) for row, slot in enumerate(slots) if slot in table] if table else []


def _right_aligned(tokens: Sequence[int], width: int) -> list[int]:
    return [-1] * (width - len(tokens)) + list(tokens)
