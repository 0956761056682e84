"""Vectors of whole prompts, for the requests that ask for one instead of a completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor

from octavo.core.plan import NewRow, RowStep, StepResult
from octavo.sampling_params import PoolingParams

Vectors = dict[int, Tensor]
"""Slot -> its vector ``[H]`` float32, on the device."""


def pools(rows: Sequence[RowStep], entered: Mapping[int, NewRow]) -> bool:
    """Whether ``pool`` would find anything to do: its rows' hidden states must not stay inside a graph."""
    return any(row.samples and isinstance(entered[row.slot].params, PoolingParams) for row in rows)


def pool(rows: Sequence[RowStep], entered: Mapping[int, NewRow], hidden: Tensor) -> Vectors:
    """The hidden state of each prompt's last token, of length 1 (as arXiv:2506.05176 has it).

    Args:
        rows: of the step. A prompt whose last token is not among theirs has no vector yet.
        entered: the requests by slot. Rows that did not ask cost nothing.
        hidden: ``[T, H]``, states of the step's tokens.
    """
    vectors: Vectors = {}
    end = 0
    for row in rows:
        end += row.num_tokens
        if row.samples and isinstance(entered[row.slot].params, PoolingParams):
            vectors[row.slot] = torch.nn.functional.normalize(hidden[end - 1].float(), dim=0)
    return vectors


def with_vectors(result: StepResult, vectors: Vectors) -> StepResult:
    """``result`` with the ``vectors`` brought to the host."""
    if not vectors:
        return result
    rows = torch.stack(list(vectors.values())).cpu().numpy()
    return msgspec.structs.replace(result, vectors=dict(zip(vectors, rows, strict=True)))
