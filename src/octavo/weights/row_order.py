"""The order of the rows of query and key projections."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


def unpermute(rows: NDArray[T], num_heads: int) -> NDArray[T]:
    """Put the rows of a query or key projection from Meta's order (llama.cpp's, too) into Hugging Face's.

    Rotary embeddings turn pairs of dimensions. Hugging Face pairs dimension i of a head with i + head_dim / 2, Meta
    pairs neighbours, so the two halves of each head are interleaved. As whole rows move, this works on packed bytes.

    Args:
        rows: ``[num_heads * head_dim, length of a row]``.
    """
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def unpermuted(rows: NDArray[T], num_heads: int, wanted: slice) -> NDArray[T]:
    """Some rows of what `unpermute` gives, without moving the others."""
    order = unpermute(np.arange(len(rows))[:, None], num_heads)[:, 0]
    taken: NDArray[T] = rows[order[wanted]]
    return taken


def permute(rows: NDArray[T], num_heads: int) -> NDArray[T]:
    """The inverse of `unpermute`: from Hugging Face's order into Meta's. ``rows``: as there, or one number a row."""
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
