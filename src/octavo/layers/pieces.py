"""A matrix whose numbers are still in the checkpoint: what quantizes it reads some rows at a time.

So it never is in memory as plain numbers, which would be two to four times what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo.layers.weight import Piece, Place

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor of the checkpoint: which of its rows and columns are ``rows`` of the matrix."""

    piece: Piece
    rows: range
    source: tuple[slice, slice]

    @classmethod
    def at(cls, place: Place, piece: Piece, num_rows: int) -> Held:
        """``num_rows``: of the matrix."""
        rows, columns = (*place.source, ALL)[:2]
        return cls(piece, range(num_rows)[place.rows], (rows, columns))

    def read_into(self, out: Tensor, begin: int) -> None:
        """Fill those rows of ``out``, the matrix from row ``begin`` on, that are here; the file's pages are let go."""
        first, last = max(self.rows.start, begin), min(self.rows.stop, begin + len(out))
        if first >= last:
            return
        rows, columns = self.source
        moved = (rows.start or 0) - self.rows.start
        wanted = slice(first + moved, last + moved)
        out[first - begin : last - begin].copy_(self.piece.read(out.dtype, wanted)[:, columns])
        self.piece.release(wanted)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Rows ``first`` to ``last - 1`` of a matrix that is made of ``held``, in the order of rows; others are 0.

    Attributes:
        columns: K.
        dtype: of what is read.
        device: where it goes.
    """

    held: Sequence[Held]
    first: int
    last: int
    columns: int
    dtype: torch.dtype
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def shape(self) -> tuple[int, int]:
        return self.last - self.first, self.columns

    def chunk(self, count: int) -> list[Pieces]:
        """``count`` matrices of as many rows each."""
        rows = (self.last - self.first) // count
        starts = range(self.first, self.last, rows)
        return [Pieces(self.held, i, i + rows, self.columns, self.dtype, self.device) for i in starts]

    def __getitem__(self, rows: slice) -> Tensor:
        """``[rows, K]``; the file's pages behind it are let go."""
        begin, end, _ = rows.indices(self.last - self.first)
        out = torch.zeros(end - begin, self.columns, dtype=self.dtype, device=self.device)
        for held in self.held:
            held.read_into(out, begin + self.first)
        return out
