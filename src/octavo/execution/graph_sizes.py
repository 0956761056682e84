"""For which steps there are CUDA graphs: few sizes, each close enough to what it stands for to waste little."""

from __future__ import annotations

from itertools import takewhile

from octavo.execution.step_input import Shape

_SMALL = (1, 2, 4, 8, 16, 32, 48, 64)
_STEP = 32

LAUNCH_SECONDS = 6e-4
"""What the host needs to launch the kernels of one layer, one by one (measured on a server's Xeon: 0.5 to 0.7 ms)."""
FLOPS = 4e14
"""Operations in a second that a large GPU reaches on a whole step (an H100, bfloat16)."""
LEAST_TOKENS = 256
"""Steps of so many tokens take graphs in any model."""


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Rows of the graphs for steps in which every row decodes: few enough to record all beforehand.

    From 64 on in steps of 32, from 256 on in steps of an eighth to a quarter.
    """
    sizes = list(_SMALL)
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + max(_STEP, (1 << sizes[-1].bit_length()) // 8))
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def mixed_size(tokens: int, rows: int, max_num_seqs: int) -> Shape:
    """The graph for a step of any rows: tokens up to an eighth more, rows to the next of 1, 4, 16, 64, 128, 256, ….

    The head computes logits for all rows: one that does not sample, or is nobody's, costs little as long as reading the
    head's weights is what takes the time.
    """
    step = _step(tokens)
    sizes = [*takewhile(lambda size: size < max_num_seqs, (1, 4, 16)), *_doubling(64, max_num_seqs)]
    size = next(size for size in sizes if size >= rows)
    return Shape(-(-tokens // step) * step, size, size)


def most_mixed_tokens(num_layers: int, num_params: int, max_num_batched_tokens: int) -> int:
    """How many tokens a step may have to take a graph: beyond, the device computes for longer than the host needs to
    launch kernel by kernel, so that a graph would only cost what it is filled up with.
    """
    equal = num_layers * LAUNCH_SECONDS * FLOPS / (2 * num_params)
    most = min(max(LEAST_TOKENS, 1 << int(equal).bit_length()), max_num_batched_tokens)
    return most - most % _step(most)  # a graph's own size


def _step(tokens: int) -> int:
    return max(16, (1 << (tokens - 1).bit_length()) // 8)


def _doubling(first: int, last: int) -> list[int]:
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]
