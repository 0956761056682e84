"""Choosing one token from each row of logits, in plain torch: the oracle of every faster sampling kernel.

Reproducible by arithmetic, not by luck: probabilities are kept as float64 *weights* ``exp((logit - max) /
temperature)`` rounded to multiples of ``GRAIN``. A sum of up to 2**20 of them is exact, so it is the same in
whatever order a device adds, and a row's token never depends on the rest of the batch or on the path that
found it.

Ties everywhere go to the lower token id. Functions that edit logits do so in place and return them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.kernels.sampling import Logprobs

GRAIN = 2.0**-33
"""Weights are multiples of this; one token's error is at most half of it, relative to the likeliest token."""

MAX_VOCAB_SIZE = 2**20
"""Weights are at most 1, so float64's 53 bits hold exact sums of this many multiples of ``GRAIN``."""

_ROUNDER = 2.0**19  # float64 numbers in [2**19, 2**20) are 2**-33 apart
_CANDIDATES = (256, 4096)  # how many of the likeliest tokens to look at before sorting the whole row
_CHUNK_WEIGHTS = 2**19  # 4 MiB
_MAX_CANDIDATES = 2**22  # of all rows together; each takes some 40 bytes while it is sorted and drawn from


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row of ``logits`` float32 [R, V], int64 [R]."""
    return logits.argmax(dim=1)


def weights(logits: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """Unnormalised probabilities of ``logits`` [R, N], float64 [R, N] in [0, 1], multiples of ``GRAIN``.

    ``best`` float32 [R, 1] is the largest logit of each row; ``temperature`` float32 [R] is above 0.
    """
    scaled = (logits - best).div_(temperature[:, None]).exp_().double()
    return scaled.add_(_ROUNDER).sub_(_ROUNDER)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index in each row whose running sum exceeds ``uniform`` x total, int64 [R].

    This is inverse transform sampling. ``weights`` is float64 [R, N] as ``weights`` makes them, ``uniform``
    float64 [R] in [0, 1). An index of weight 0 is never drawn: running sums are exact, and rise only where a
    weight is not 0.
    """
    running = weights.cumsum(dim=1)
    # At most 1 - 2**-53 times the total rounds to less than the total, so the last weight always exceeds it.
    target = uniform * running[:, -1]
    index = torch.searchsorted(running, target[:, None], right=True)[:, 0]
    return index.clamp_(max=weights.shape[1] - 1)  # rows of NaN end up beyond the last one


class Filters(NamedTuple):
    """What a row's draw depends on besides its logits: one value a row.

    ``uniform`` float64 in [0, 1); ``temperature`` float32 above 0; ``top_k`` int64, 0 is off; ``top_p``
    float64 in (0, 1]; ``min_p`` float64 in [0, 1], 0 is off.
    """

    uniform: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def select(self, rows: Tensor | slice) -> Filters:
        """The values of some rows: int64 indices or a slice."""
        return Filters(*(value[rows] for value in self))


def sample(logits: Tensor, filters: Filters) -> Tensor:
    """A token for each row of ``logits`` float32 [R, V] by temperature and min-p alone, int64 [R].

    The draw walks through the vocabulary. Min-p (arXiv:2407.01082) drops tokens less likely than ``min_p``
    times the likeliest.
    """
    parts = [draw(_row_weights(part, own), own.uniform) for part, own in _chunks(logits, filters)]
    return torch.cat(parts)


def sample_filtered(logits: Tensor, filters: Filters) -> Tensor:
    """A token for each row of ``logits`` float32 [R, V] by temperature, min-p, top-k, then top-p, int64 [R].

    Top-k keeps the k likeliest tokens, top-p (nucleus sampling, arXiv:1904.09751) the fewest likeliest tokens
    whose share of what is left reaches p. The draw walks from the likeliest token down, so it needs only the
    head of the sorted row: a few candidates are tried first, and only rows whose nucleus is larger are sorted
    in full.
    """
    mass = _mass(logits, filters)
    tokens = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    pending = torch.arange(len(logits), device=logits.device)
    for count in _candidate_counts(filters.top_k, logits.shape[1]):
        undecided = []
        for some in pending.split(max(1, _MAX_CANDIDATES // count)):
            rows = logits if len(some) == len(logits) else logits[some]
            chosen, decided = _choose_from_head(rows, count, filters.select(some), mass[some])
            tokens[some[decided]] = chosen[decided]
            undecided.append(some[~decided])
        pending = torch.cat(undecided)
        if len(pending) == 0:
            break
    return tokens


def _candidate_counts(top_k: Tensor, vocab_size: int) -> list[int]:
    first = _CANDIDATES[0]
    if bool((top_k > 0).all()):
        first = min(first, int(top_k.max()))
    return [count for count in (first, *_CANDIDATES[1:]) if count < vocab_size] + [vocab_size]


def _chunks(logits: Tensor, filters: Filters) -> Iterator[tuple[Tensor, Filters]]:
    """A few rows at a time, so that a processor's cache holds their weights; the tokens are the same."""
    step = max(1, _CHUNK_WEIGHTS // logits.shape[1])
    for start in range(0, max(1, len(logits)), step):
        rows = slice(start, start + step)
        yield logits[rows], filters.select(rows)


def _row_weights(logits: Tensor, filters: Filters) -> Tensor:
    best = logits.amax(dim=1, keepdim=True)
    return _min_p(weights(logits, best, filters.temperature), filters.min_p)


def _min_p(weight: Tensor, min_p: Tensor) -> Tensor:
    return weight.masked_fill_(weight < min_p[:, None], 0.0) if bool(min_p.any()) else weight


def _mass(logits: Tensor, filters: Filters) -> Tensor:
    """The sum of a whole row's weights after min-p, float64 [R]; 0 where nobody needs it."""
    mass = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    rows = ((filters.top_k == 0) & (filters.top_p < 1)).nonzero()[:, 0]
    if len(rows):
        own = logits if len(rows) == len(logits) else logits[rows]
        parts = [_row_weights(*part).sum(dim=1) for part in _chunks(own, filters.select(rows))]
        mass[rows] = torch.cat(parts)
    return mass


def _choose_from_head(logits: Tensor, count: int, filters: Filters, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens int64 [R] from the ``count`` likeliest of each row, and which rows these decide, bool [R]."""
    values, ids, certain = sorted_head(logits, count)
    weight = _min_p(weights(values, values[:, :1], filters.temperature), filters.min_p)
    position = torch.arange(weight.shape[1], device=weight.device)
    top_k = torch.where(filters.top_k > 0, filters.top_k, logits.shape[1])
    weight.masked_fill_(position >= top_k[:, None], 0.0)
    before = weight.cumsum(dim=1) - weight
    # All rules keep a beginning of the sorted row, so its length says it all; a top-p of 1 drops nothing.
    goal = torch.where(filters.top_k > 0, weight.sum(dim=1), mass) * filters.top_p
    goal = torch.where(filters.top_p < 1, goal, torch.inf)
    keep = (weight > 0) & (before < goal[:, None])
    decided = keep.sum(dim=1) <= certain
    if values.shape[1] < logits.shape[1]:  # top-p's share of the top k needs to see all of these
        decided &= (filters.top_k == 0) | (filters.top_k <= values.shape[1])
    index = draw(weight.masked_fill_(~keep, 0.0), filters.uniform)
    return ids.gather(1, index[:, None])[:, 0], decided


def sorted_head(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest tokens of each row, sorted by logit downwards, ties by token id upwards.

    Returns values [R, C] and ids int64 [R, C] with C = ``count`` + 1 (or all V, if that is fewer), and int64
    [R]: how many ids from the left are certain. The others tie with the last value, and so perhaps with
    tokens not seen here; all values are certain.
    """
    if count + 1 >= logits.shape[1]:
        values, ids = torch.sort(logits, dim=1, descending=True, stable=True)
        return values, ids, torch.full((len(logits),), logits.shape[1], device=logits.device)
    values, ids = logits.topk(count + 1, dim=1)
    ids, order = ids.sort(dim=1)
    values, order = torch.sort(values.gather(1, order), dim=1, descending=True, stable=True)
    return values, ids.gather(1, order), (values > values[:, -1:]).sum(dim=1)


def top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` (at most V) likeliest tokens of each row, ties by token id: values and int64 ids [R, k]."""
    k = min(k, logits.shape[1])
    values, ids, certain = sorted_head(logits, k)
    tied = (certain < k).nonzero()[:, 0]
    if len(tied):
        ids[tied] = torch.sort(logits[tied], dim=1, descending=True, stable=True)[1][:, : ids.shape[1]]
    return values[:, :k], ids[:, :k]


def gather_logprobs(logits: Tensor, token_ids: Tensor, k: int) -> Logprobs:
    """Log-softmax of ``logits`` float32 [N, V] at ``token_ids`` int64 [N] and at the ``k`` likeliest tokens.

    The rank of a token is one more than the number of tokens that are likelier; tied tokens share theirs.
    """
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    chosen = logits.gather(1, token_ids[:, None])
    rank = (logits > chosen).sum(dim=1) + 1
    top, top_ids = top_tokens(logits, k)
    return Logprobs((chosen - normaliser)[:, 0], rank, top_ids, top - normaliser)


def apply_token_bitmask(logits: Tensor, rows: Tensor, bitmask: Tensor) -> Tensor:
    """Set logits float32 [S, V] of the rows ``rows`` int64 [R] to -inf where their bits, int32 [R, words], are 0."""
    allowed = _bits_of_bytes(logits.device)[bitmask.view(torch.uint8).long()].flatten(1)[:, : logits.shape[1]]
    logits[rows] = logits[rows].masked_fill_(~allowed, -torch.inf)
    return logits


@lru_cache
def _bits_of_bytes(device: torch.device) -> Tensor:
    """The bits of each byte, the lowest first: bool [256, 8]."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)
    return (bits & 1).bool()


def keep_only(logits: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Set every logit to -inf but those at (``rows``, ``ids``), int64 [N], in all rows of ``rows``."""
    kept = logits[rows, ids]
    logits[rows] = -torch.inf
    logits[rows, ids] = kept
    return logits


def add_at(logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Add ``values`` float32 [N] to the logits at (``rows``, ``ids``), int64 [N]; -inf bans a token."""
    return logits.index_put_((rows, ids), values, accumulate=True)


def bad_word_endings(tail: Tensor, prefixes: Tensor) -> Tensor:
    """Which bad words a next token could complete, bool [M].

    ``tail`` int64 [T] is the end of the output and ``prefixes`` int64 [M, T] all words without their last
    token, both aligned to the right. -1 fills up ``prefixes``, where it matches anything, and a short
    ``tail``, where it does not.
    """
    return ((prefixes == tail) | (prefixes < 0)).all(dim=1)


class Penalties(NamedTuple):
    """Strengths for R rows, float32 [R]; a ``repetition`` of 1 is off, and 0 for the others."""

    repetition: Tensor
    presence: Tensor
    frequency: Tensor


def apply_penalties(logits: Tensor, rows: Tensor, ids: Tensor, counts: Tensor, strength: Penalties) -> Tensor:
    """Penalise the tokens that each row has seen, in ``logits`` float32 [S, V].

    ``rows`` int64 [R]; ``ids`` int64 [R, C], each row's distinct tokens of prompt and output, -1 after its
    last; ``counts`` int64 [R, C], how often each stands in the output. Repetition (CTRL, arXiv:1909.05858)
    divides positive logits and multiplies negative ones; frequency is subtracted for each occurrence in the
    output, presence once.
    """
    some = ids[:, :1] >= 0
    filler = ids < 0
    # An unused entry repeats the first one: to write the same value twice is harmless and waits for nothing.
    ids = torch.where(filler, ids[:, :1], ids).clamp(min=0)
    counts = torch.where(filler, counts[:, :1], counts)
    repetition, presence, frequency = (value[:, None] for value in strength)
    old = logits[rows[:, None], ids]
    new = torch.where(old > 0, old / repetition, old * repetition) - frequency * counts - presence * (counts > 0)
    logits[rows[:, None], ids] = torch.where(some, new, old)
    return logits
