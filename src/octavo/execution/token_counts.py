"""Which tokens a penalised request has seen, kept on the device, where its newest token is known first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.transfer import to_device

_MIN_ROWS, _MIN_WIDTH = 8, 256


class TokenCounts:
    """A pool of rows, one for each request with penalties: its tokens and how often it produced each.

    A row costs memory by its distinct tokens, not by the vocabulary, and requests without penalties have
    none. The pool grows by doubling, and shrinks back when the last row is given up.

    The host knows an upper bound on the entries of each row (one more a step), so that no step waits for the
    device.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._row_of: dict[int, int] = {}
        self._free: list[int] = list(range(_MIN_ROWS))
        self._bounds = np.zeros(_MIN_ROWS, np.int64)
        self._ids, self._counts, self._lengths = self._allocate(_MIN_ROWS, _MIN_WIDTH)

    def _allocate(self, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [rows, width], -1 if unused; their counts in the output; numbers of entries [rows]."""
        ids = torch.full((rows, width), -1, dtype=torch.int64, device=self._device)
        return ids, torch.zeros_like(ids), torch.zeros(rows, dtype=torch.int64, device=self._device)

    def __contains__(self, slot: int) -> bool:
        return slot in self._row_of

    @property
    def num_bytes(self) -> int:
        """Memory of the pool."""
        return sum(x.numel() * x.element_size() for x in (self._ids, self._counts, self._lengths))

    def add(self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> None:
        """Start a row for ``slot``. Without a repetition penalty, leave out the prompt."""
        self.remove(slot)
        ids, counts = _distinct(prompt_token_ids, output_token_ids)
        self._reserve(len(ids))
        row = self._row_of[slot] = self._free.pop()
        self._ids[row] = -1
        self._counts[row] = 0
        self._ids[row, : len(ids)] = torch.from_numpy(ids).to(self._device)
        self._counts[row, : len(ids)] = torch.from_numpy(counts).to(self._device)
        self._lengths[row] = self._bounds[row] = len(ids)

    def remove(self, slot: int) -> None:
        """Give up the row of ``slot``, if it has one."""
        row = self._row_of.pop(slot, None)
        if row is not None:
            self._free.append(row)
            if not self._row_of:
                self._clear()

    def entries(self, slots: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Ids and counts, int64 [R, C] each, of R slots that have rows; -1 is the id of unused entries."""
        rows, width = self._rows(slots)
        return self._ids[rows, :width], self._counts[rows, :width]

    def record(self, slots: Iterable[int], tokens: Tensor) -> None:
        """Count one output token, int64 [R], for each of R slots that have rows."""
        slots = list(slots)
        self._bounds[[self._row_of[slot] for slot in slots]] += 1
        self._reserve_width(int(self._bounds.max()))
        rows, width = self._rows(slots)
        known, place = (self._ids[rows, :width] == tokens[:, None]).max(dim=1)
        place = torch.where(known, place, self._lengths[rows])
        self._ids[rows, place] = tokens
        self._counts[rows, place] += 1
        self._lengths[rows] += ~known

    def _rows(self, slots: Iterable[int]) -> tuple[Tensor, int]:
        rows = [self._row_of[slot] for slot in slots]
        width = min(max(1, int(self._bounds[rows].max())), self._ids.shape[1])
        return to_device(np.asarray(rows, np.int64), self._device), width

    def _reserve(self, width: int) -> None:
        if not self._free:
            rows = len(self._bounds)
            self._resize(2 * rows, self._ids.shape[1])
            self._bounds = np.concatenate([self._bounds, np.zeros(rows, np.int64)])
            self._free = list(range(rows, 2 * rows))  # last: an interrupt before this leaves nothing without its memory
        self._reserve_width(width)

    def _reserve_width(self, width: int) -> None:
        """Room for ``width`` entries a row; there are never more distinct tokens than the vocabulary has."""
        have = self._ids.shape[1]
        if width > have < self._vocab_size:
            self._resize(len(self._ids), min(max(width, 2 * have), max(have, self._vocab_size)))

    def _resize(self, rows: int, width: int) -> None:
        old = self._ids, self._counts, self._lengths
        self._ids, self._counts, self._lengths = new = self._allocate(rows, width)
        for source, target in zip(old, new, strict=True):
            target[tuple(slice(size) for size in source.shape)] = source


def _distinct(prompt: Sequence[int], output: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct tokens of prompt and output, and how often each stands in the output; int64 [N] each."""
    made = np.asarray(output, np.int64)
    ids, place = np.unique(np.concatenate([np.asarray(prompt, np.int64), made]), return_inverse=True)
    counts = np.bincount(place.reshape(-1)[len(prompt) :], minlength=len(ids)).astype(np.int64)
    return ids, counts
