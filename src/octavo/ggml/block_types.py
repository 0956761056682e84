"""GGML's block types: their names, numbers and sizes, and the expansion of packed bytes to float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelError
from octavo.ggml import formulas as blocks

CHUNK_WEIGHTS = 1 << 15
"""Weights expanded at a time: the float32 result (128 KiB) and its temporaries stay in a core's cache, and
torch copies so few in the calling thread. For more it wakes its pool of threads, and waiting for that
costs far more than the copy when the cores are busy."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """A way to store weights: ``block_size`` of them in ``type_size`` bytes.

    ``ggml_id`` is the number that stands for the type in a GGUF file. ``expand`` takes ``uint8[n,
    type_size]`` and returns ``float32[n, block_size]``.
    """

    name: str
    ggml_id: int
    block_size: int
    type_size: int
    expand: Callable[[NDArray[np.uint8]], NDArray[np.float32]]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size


def _by_package(name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The expansion of a rare type. Most of these take their weights from code books of some kilobytes, which the
    ``gguf`` package has.
    """

    def expand(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
        from gguf import GGMLQuantizationType, quants

        with np.errstate(all="ignore"):
            return quants.dequantize(packed, GGMLQuantizationType[name])

    return expand


BLOCK_TYPES: dict[str, BlockType] = {
    kind.name: kind
    for kind in (
        BlockType("F32", 0, 1, 4, blocks.f32),
        BlockType("F16", 1, 1, 2, blocks.f16),
        BlockType("BF16", 30, 1, 2, blocks.bf16),
        BlockType("Q4_0", 2, 32, 18, blocks.q4_0),
        BlockType("Q4_1", 3, 32, 20, blocks.q4_1),
        BlockType("Q5_0", 6, 32, 22, blocks.q5_0),
        BlockType("Q5_1", 7, 32, 24, blocks.q5_1),
        BlockType("Q8_0", 8, 32, 34, blocks.q8_0),
        BlockType("Q2_K", 10, 256, 84, blocks.q2_k),
        BlockType("Q3_K", 11, 256, 110, blocks.q3_k),
        BlockType("Q4_K", 12, 256, 144, blocks.q4_k),
        BlockType("Q5_K", 13, 256, 176, blocks.q5_k),
        BlockType("Q6_K", 14, 256, 210, blocks.q6_k),
        BlockType("IQ4_NL", 20, 32, 18, blocks.iq4_nl),
        BlockType("IQ4_XS", 23, 256, 136, blocks.iq4_xs),
        *(
            BlockType(name, number, size, type_size, _by_package(name))
            for name, number, size, type_size in (
                ("IQ1_S", 19, 256, 50),
                ("IQ1_M", 29, 256, 56),
                ("IQ2_XXS", 16, 256, 66),
                ("IQ2_XS", 17, 256, 74),
                ("IQ2_S", 22, 256, 82),
                ("IQ3_XXS", 18, 256, 98),
                ("IQ3_S", 21, 256, 110),
                ("TQ1_0", 34, 256, 54),
                ("TQ2_0", 35, 256, 66),
                ("MXFP4", 39, 32, 17),
                ("NVFP4", 40, 64, 36),
            )
        ),
    )
}
"""Name -> type, for all types that can be read."""

BLOCK_TYPES_BY_ID = {kind.ggml_id: kind for kind in BLOCK_TYPES.values()}
"""GGML's number -> type."""

UNREADABLE_TYPES = {
    9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 41: "Q1_0",
}  # fmt: skip
"""GGML's number -> name, for types that exist and cannot be read, so that an error can name them."""


def dequantize(
    data: NDArray[np.uint8], kind: str | BlockType, *, out: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """Expand packed bytes.

    Args:
        data: whole blocks, ``uint8`` of any shape, taken in C order.
        kind: a name from ``BLOCK_TYPES``, or the type itself.
        out: float array with room for all weights, which receives them, rounded to its type;
            None makes a float32 one.

    Returns:
        ``out``, or ``float32[number of weights]``.

    Raises:
        ModelError: the type is unknown, the bytes are not whole blocks, or ``out`` has not the right size.
    """
    kind = block_type(kind)
    size = number_of_weights(data.size, kind)
    out = np.empty(size, np.float32) if out is None else out
    if out.size != size or not out.flags.c_contiguous:
        raise ModelError(f"{size} weights cannot go into a target of {out.size}; expected one of that size, in C order")
    flat = out.reshape(-1)
    for where, weights in dequantize_chunks(data, kind):
        flat[where] = weights
    return out


def dequantize_chunks(data: NDArray[np.uint8], kind: str | BlockType) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Expand packed bytes piece by piece: yields where a piece lies among all weights, and its
    ``float32[m]``.

    What is in memory at once does not grow with the tensor. Raises ``ModelError`` as ``dequantize`` does.
    """
    kind = block_type(kind)
    number_of_weights(data.size, kind)
    packed = data.reshape(-1, kind.type_size)
    step = CHUNK_WEIGHTS // kind.block_size
    for begin in range(0, len(packed), step):
        with np.errstate(all="ignore"):  # a file may hold infinite scales: what comes of them is the file's affair
            weights = kind.expand(packed[begin : begin + step]).reshape(-1)
        at = begin * kind.block_size
        yield slice(at, at + len(weights)), weights


def block_type(kind: str | BlockType) -> BlockType:
    """The type of that name. Raises ``ModelError`` for one that is not in ``BLOCK_TYPES``."""
    if isinstance(kind, BlockType):
        return kind
    if kind not in BLOCK_TYPES:
        raise ModelError(f"block type {kind!r} is not supported; accepted: {', '.join(BLOCK_TYPES)}")
    return BLOCK_TYPES[kind]


def number_of_weights(num_bytes: int, kind: BlockType) -> int:
    """How many weights ``num_bytes`` hold. Raises ``ModelError`` unless they are whole blocks."""
    num_blocks, rest = divmod(num_bytes, kind.type_size)
    if rest:
        raise ModelError(f"{num_bytes} bytes are not whole {kind.name} blocks; expected a multiple of {kind.type_size}")
    return num_blocks * kind.block_size
