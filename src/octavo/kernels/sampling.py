"""What sampling passes through the seam: the parameters of each row as one array, and the tokens that come back.

All that a row's token depends on, besides its logits, is a record of ten 32-bit words. The host keeps one for each
request, changes its position from step to step, and brings those of a step to the device in one copy; a kernel
in a CUDA graph reads them there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

PARAMS = np.dtype(
    [
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f8"),
        ("min_p", "<f8"),
        ("seed", "<u8"),
        ("position", "<i8"),
    ]
)
"""One row: ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off; ``position`` is how many
tokens the request has produced. The random numbers of a token are made of ``seed`` and ``position`` alone."""

PARAM_WORDS = PARAMS.itemsize // 4
"""Rows of parameters on a device are int32 ``[S, PARAM_WORDS]``: the records as they lie in memory."""


class Sampled(NamedTuple):
    """The tokens of S rows: ``token_ids`` int64 [S], and ``bad`` bool [S]: rows whose largest logit is not finite,
    or NaN. Their token is 0 and means nothing.
    """

    token_ids: Tensor
    bad: Tensor


class LastTokens(NamedTuple):
    """Where the next step finds its input: row r's token is also written to ``tokens[slots[r]]``.

    ``slots`` is int32 or int64 [S], none twice; rows with a negative slot are left out. ``tokens`` is int32 or int64
    [max_slots].
    """

    slots: Tensor
    tokens: Tensor


class Logprobs(NamedTuple):
    """Log-probabilities (natural) at N positions: of one token each, and of the K likeliest.

    ``chosen`` float32 [N]; ``rank`` int64 [N], 1 is the likeliest; ``top_ids`` int64 [N, K], ``top`` float32
    [N, K].
    """

    chosen: Tensor
    rank: Tensor
    top_ids: Tensor
    top: Tensor
