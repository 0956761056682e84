"""Log-probabilities for the rows and prompts that ask for them, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from octavo.kernels.ops import Ops
from octavo.kernels.sampling import Logprobs
from octavo.kernels.transfer import to_device

_CHUNK_BYTES = 64 * 2**20


class TokenLogprobs(NamedTuple):
    """Log-probability and rank (1 is the likeliest) of one token, and the likeliest tokens, best first."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


def raw_rows(logits: Tensor, rows: np.ndarray) -> Tensor:
    """A copy of some rows, int64 [N], of ``logits`` [S, V], from before they are edited."""
    return logits[to_device(rows, logits.device)]


def to_host(token_ids: Tensor, logprobs: Logprobs, widths: Sequence[int]) -> list[TokenLogprobs]:
    """Plain values of N positions; ``widths`` says how many of the likeliest tokens each asked for."""
    tokens, chosen, rank, ids, top = (x.tolist() for x in (token_ids, *logprobs))
    return [
        TokenLogprobs(tokens[i], chosen[i], rank[i], ids[i][:width], top[i][:width]) for i, width in enumerate(widths)
    ]


def prompt_logprobs(ops: Ops, logits: Tensor, target_ids: Tensor, k: int) -> list[TokenLogprobs]:
    """Log-probabilities of the prompt tokens ``target_ids`` int64 [P] under ``logits`` float32 [P, V].

    Each row of logits is that of the position before its target. Works through the rows in chunks, so that
    beside the logits it needs some 64 MiB of memory, whatever P is.
    """
    step = max(1, _CHUNK_BYTES // (4 * logits.shape[1]))
    found: list[TokenLogprobs] = []
    for start in range(0, len(logits), step):
        targets = target_ids[start : start + step]
        chunk = ops.gather_logprobs(logits[start : start + step], targets, k)
        found += to_host(targets, chunk, [k] * len(targets))
    return found
