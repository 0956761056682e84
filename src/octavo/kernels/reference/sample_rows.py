"""A step's rows, of all kinds, each sampled as its parameters say; see `octavo.kernels.sampling`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.reference import sampling
from octavo.kernels.reference.random_numbers import uniform
from octavo.kernels.sampling import PARAMS, LastTokens, Sampled


def sample_rows(logits: Tensor, params: Tensor, last: LastTokens | None) -> Sampled:
    """What `Ops.sample` says. Only rows that filter pay for it. Waits for ``params`` if they are not on the host."""
    table = params.cpu().numpy().view(PARAMS)[:, 0]
    logits = logits.float()
    token_ids = torch.zeros(len(table), dtype=torch.int64, device=logits.device)
    for kind, choose in _kinds(table):
        if not kind.any():
            continue
        if kind.all():
            token_ids = choose(logits, table)
        else:
            rows = torch.from_numpy(np.flatnonzero(kind)).to(logits.device)
            token_ids[rows] = choose(logits[rows], table[kind])
    bad = ~logits.amax(dim=1).isfinite()
    token_ids.masked_fill_(bad, 0)
    remember(token_ids, last)
    return Sampled(token_ids, bad)


def remember(token_ids: Tensor, last: LastTokens | None) -> None:
    """Write ``token_ids [S]`` to where the next step finds its input."""
    if last is not None:
        real = last.slots >= 0
        last.tokens[last.slots[real].long()] = token_ids[real].to(last.tokens.dtype)


def _kinds(table: np.ndarray) -> tuple[tuple[np.ndarray, Callable[[Tensor, np.ndarray], Tensor]], ...]:
    """Which rows, bool [S], are sampled by which function."""
    drawn = table["temperature"] > 0
    filtered = drawn & ((table["top_k"] > 0) | (table["top_p"] < 1))
    return (~drawn, _greedy), (drawn & ~filtered, _draw), (filtered, _draw_filtered)


def _greedy(logits: Tensor, table: np.ndarray) -> Tensor:
    return sampling.greedy(logits)


def _draw(logits: Tensor, table: np.ndarray) -> Tensor:
    return sampling.sample(logits, _filters(table, logits.device))


def _draw_filtered(logits: Tensor, table: np.ndarray) -> Tensor:
    return sampling.sample_filtered(logits, _filters(table, logits.device))


def _filters(table: np.ndarray, device: torch.device) -> sampling.Filters:
    numbers = uniform(table["seed"], table["position"].astype(np.uint64))
    rules = table["temperature"].copy(), table["top_k"].astype(np.int64), table["top_p"].copy(), table["min_p"].copy()
    return sampling.Filters(*(torch.from_numpy(values).to(device) for values in (numbers, *rules)))
