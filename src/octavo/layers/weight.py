"""Parameters that know which tensors of a checkpoint they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from octavo.errors import ModelError
from octavo.kernels import memory
from octavo.kernels.packed import Operand, PackedWeight
from octavo.kernels.packed_parts import stack_rows, take_columns, take_rows
from octavo.layers.build import Build
from octavo.layers.pieces import ALL, Held, Pieces
from octavo.quantization.dummy import random_weight, tile
from octavo.quantization.pack import quantize
from octavo.quantization.schemes import Scheme

AT_ONCE = 1 << 20
"""Weights of a matrix that are read at a time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor of a checkpoint goes in a parameter.

    Attributes:
        shape: of the whole tensor in the checkpoint.
        source: what this shard takes of it, dimension by dimension.
        rows: of the parameter, that it fills.
        module: the checkpoint's name for the module, where it is not the module's own: "q_proj" for a part of
            "qkv_proj".
    """

    shape: tuple[int, ...]
    source: tuple[slice, ...] = (ALL,)
    rows: slice = field(default_factory=lambda: ALL)
    module: str | None = None


class Piece(Protocol):
    """What a parameter needs of a tensor in a checkpoint: see ``octavo.weights.checkpoint.LazyTensor``."""

    @property
    def name(self) -> str: ...

    def read(self, dtype: torch.dtype, rows: slice = ALL) -> Tensor: ...

    @property
    def packed_kind(self) -> str | None: ...

    def packed(self) -> PackedWeight | None: ...

    def release(self, rows: slice = ALL) -> None: ...


class Weight(nn.Parameter):
    """A parameter without gradient that is filled from the checkpoint, place by place.

    Attributes:
        places: which tensors it is made of. Rows that none of them fills are zero.
        full_shape: its shape, whether it has memory now or not.
        is_given: it was taken as a whole, and needs nothing of the checkpoint.
        is_expanded: the checkpoint has it in another, packed form.
    """

    places: Sequence[Place]
    full_shape: tuple[int, ...]
    is_given = False
    is_expanded = False

    def __new__(cls, build: Build, shape: tuple[int, ...], places: Sequence[Place], *, lazily: bool = False) -> Self:
        """Uninitialised memory of ``shape``, in the build's dtype and on its device; ``lazily``: when it is needed."""
        data = torch.empty(0, dtype=build.dtype, device=build.device)
        weight = torch.Tensor._make_subclass(cls, data, False)
        weight.places, weight.full_shape = places, shape
        if not lazily:
            weight.allocate()
        return weight

    @property
    def filled_rows(self) -> int:
        """How many of its rows a checkpoint fills: the first ones."""
        return max(place.rows.indices(self.full_shape[0])[1] for place in self.places)

    def allocate(self) -> None:
        """Take the memory, unless that is done."""
        if self.data.shape == self.full_shape:
            return
        self.data = memory.empty(self.full_shape, self.dtype, self.device)
        self.data[self.filled_rows :].zero_()

    def release(self) -> None:
        """Give the memory back."""
        self.data = torch.empty(0, dtype=self.dtype, device=self.device)

    def fill(self, place: Place, piece: Piece) -> None:
        """Read what belongs to ``place``, unless all was given; of a matrix some rows at a time, as they may have to be
        converted.
        """
        if self.is_given:
            return
        self.is_expanded = self.is_expanded or piece.packed_kind is not None
        if len(place.shape) < 2:
            self.load(place, piece.read(self.dtype))
            return
        self.allocate()
        held = Held.at(place, piece, self.full_shape[0])
        step = max(1, AT_ONCE // max(place.shape[1], 1))
        for first in range(held.rows.start, held.rows.stop, step):
            rows = slice(first, min(first + step, held.rows.stop))
            held.read_into(self.data[rows], first)

    def load(self, place: Place, tensor: Tensor) -> None:
        """Copy this shard's part of a checkpoint's ``tensor`` (of ``place.shape``) to where it belongs."""
        self.allocate()
        self.data[place.rows].copy_(tensor[place.source])

    def give(self, data: Tensor) -> None:
        """Take all of it, of ``full_shape`` and the weight's dtype; it may be read-only."""
        self.data, self.is_given = data, True

    def fill_random(self, pattern: Tensor) -> None:
        """Take the numbers of ``pattern`` [P] again and again."""
        self.allocate()
        tile(self.data.view(-1), pattern.to(self.device, self.dtype))


class Matrix(nn.Module):
    """A module that multiplies with a weight.

    What is loaded is in the model's dtype, or packed as the checkpoint has it, or quantized as soon as all of it is
    there: as the build's `Packing` says. ``pack`` then brings it into the form that the ops like best.

    Attributes:
        keep_plain: the weight is also used as plain rows (by a tied embedding, which loads it), so packing makes a
            copy.
        packed: what is multiplied with instead of ``weight``, or None.
        is_given: ``packed`` was taken as it is, and needs nothing of the checkpoint.
    """

    keep_plain = False

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.ops, self.shard, self.packing = build.ops, build.shard, build.packing
        self.weight: Weight
        self.packed: Operand | None = None
        self.is_given = False
        self._packed_parts: dict[int | None, Operand] = {}  # by their first row
        self._kept_pieces: list[Piece] = []
        self._held: list[Held] = []
        self._num_filled = 0

    @property
    def operand(self) -> Operand:
        """What ``Ops.linear`` multiplies with: the packed weight, or the plain one until it is packed."""
        return self.weight if self.packed is None else self.packed

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.ops.linear(x, self.operand, bias)

    def fill(self, place: Place, tensor: Piece) -> None:
        """Take one piece of the weight from the checkpoint; with the last one, bring all into the form that is wanted.

        Raises:
            ModelError: this shard's part of a packed tensor would cut through numbers that belong together, and it
                must stay packed.
        """
        if self.is_given:
            return
        part = self._kept(place, tensor)
        if part is not None:
            self._packed_parts[place.rows.start] = part
            self._kept_pieces.append(tensor)
        elif not self.keep_plain and self.scheme is not None:
            self._held.append(Held.at(place, tensor, self.weight.full_shape[0]))
        elif not self.keep_plain:
            self.weight.fill(place, tensor)
        self._num_filled += 1
        if self.is_whole:
            self._join()
            self.quantize()

    @property
    def is_whole(self) -> bool:
        """Whether the last piece has come."""
        return self._num_filled == len(self.weight.places)

    def keeps(self, tensor: Piece) -> bool:
        """Whether a piece of the weight stays as the checkpoint has it packed."""
        if self.packing.keeps is None or self.weight.filled_rows < self.weight.full_shape[0]:
            return False
        kind = tensor.packed_kind
        return kind is not None and self.packing.keeps(kind)

    @property
    def scheme(self) -> Scheme | None:
        """What to quantize the weight by, if that is asked for and fits."""
        scheme = self.packing.scheme
        return scheme if scheme is not None and scheme.group_for(self.weight.full_shape[1]) is not None else None

    def quantize(self) -> None:
        """Quantize the weight, if that is asked for and fits: from the file, where it has no plain memory."""
        if self.packed is None and self.scheme is not None:
            self._replace(self._quantized(self.scheme))

    def _quantized(self, scheme: Scheme) -> PackedWeight:
        if self.keep_plain:
            return quantize(self.weight.data, scheme)
        with self._pieces() as pieces:
            return quantize(pieces, scheme)

    @contextmanager
    def _pieces(self) -> Iterator[Pieces]:
        """What is held of the weight, and is let go afterwards."""
        held, self._held = self._held, []
        n, k = self.weight.full_shape
        yield Pieces(held, 0, n, k, self.weight.dtype, self.weight.device)
        for each in held:
            each.piece.release()

    def fill_random(self, pattern: Tensor) -> None:
        """Take random numbers, those of ``pattern`` [P] again and again; what would be quantized is made packed."""
        if self.scheme is not None:
            n, k = self.weight.full_shape
            self._replace(random_weight((n, k), self.scheme, pattern, self.weight.device))
        elif not self.keep_plain:
            self.weight.fill_random(pattern)

    def give(self, packed: Operand) -> None:
        """Take all of the weight in the ops' own form."""
        self._replace(packed)
        self.is_given = True

    def pack(self) -> None:
        """Bring the weight into the ops' own form. Nothing can be loaded afterwards."""
        if not self.is_given:
            self._pack(self.ops.pack_linear(self.operand))

    def _pack(self, packed: Operand) -> None:
        """Take the ops' own form."""
        if packed is not self.operand:
            self._replace(packed)
            self._release_pieces()

    def _kept(self, place: Place, tensor: Piece) -> Operand | None:
        """This shard's part of a tensor that is packed in the checkpoint and may stay so."""
        if not self.keeps(tensor) or (packed := tensor.packed()) is None:
            return None
        rows, columns = (*place.source, ALL)[:2]
        try:
            return take_columns(take_rows(packed, rows), columns).to(self.weight.device)
        except ModelError as error:
            if not self.packing.must_keep:
                return None
            raise ModelError(f"{tensor.name}: {error}; quantization='none' expands it") from None

    def _join(self) -> None:
        """Put packed pieces, and plain ones between them, one above the other."""
        parts, self._packed_parts = self._packed_parts, {}
        if parts:
            plain = self.weight.data
            rows = [place.rows for place in self.weight.places]
            self._replace(stack_rows([parts[r.start] if r.start in parts else plain[r].clone() for r in rows]))
        if len(parts) > 1:
            self._release_pieces()

    def _release_pieces(self) -> None:
        """Let go of the file's pages, which were touched again when what they hold was copied."""
        for piece in self._kept_pieces:
            piece.release()
        self._kept_pieces = []

    def _replace(self, packed: Operand) -> None:
        self.packed = packed
        if not self.keep_plain:
            self.weight.release()
