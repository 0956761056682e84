"""The sampler: logits in, one token for each row out, as each request's ``SamplingParams`` want it.

The order of work, which is vLLM's:

====  ========================================  ==========================================================
step  what                                      acts on
====  ========================================  ==========================================================
0     log-probabilities                         the raw logits, before anything below
1     allowed_token_ids                         all other tokens become -inf
2     bad_words                                 the last token of a word whose beginning ends the output
3     min_tokens                                EOS and stop tokens, while the output is too short
4     logit_bias                                added
5     repetition, frequency, presence penalty   tokens of prompt and output; of the output; of the output
6     temperature 0                             takes the likeliest token: done
7     temperature                               divides
8     min_p                                     a share of the likeliest token's probability
9     top_k, top_p                              of the tokens that are left
10    draw                                      inverse transform of a number made of (seed, output length)
====  ========================================  ==========================================================

State has two homes. What the host knows before a step (parameters, seeds, how many tokens each row has
produced) lives on the host. What hangs on the tokens themselves (counts for penalties, the end of the output
for bad words) lives on the device and is brought up to date there, so that the next step need not wait for
the host to see the last one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.execution.logit_edits import LogitEdits
from octavo.execution.logprobs import TokenLogprobs, raw_rows, to_host
from octavo.execution.random_numbers import uniform
from octavo.execution.token_counts import TokenCounts
from octavo.kernels.reference import sampling as ops
from octavo.sampling_params import SamplingParams

_COLDEST = 1e-30  # a smaller temperature may be 0 in float32; long before, nothing but the likeliest token is left

_SLOT = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("seed", np.uint64),
        ("num_outputs", np.int64),
        ("logprobs", np.int64),  # -1: none
    ]
)


class HostSample(NamedTuple):
    """``SampledTokens`` on the host: token ids int64 [S], bad rows bool [S], log-probabilities or None."""

    token_ids: np.ndarray
    bad: np.ndarray
    logprobs: list[TokenLogprobs | None]


class SampledTokens(NamedTuple):
    """The outcome of a step on the device.

    Attributes:
        token_ids: int64 [S].
        bad: bool [S]: no token could be chosen, as a logit was NaN or +inf or all tokens were banned. The row's token
            is 0 and means nothing; its request has to fail. Other rows are unharmed.
        logprobs: of the rows that asked for them.
        logprob_rows: which rows these are, int64 [N], ascending.
        logprob_widths: how many of the likeliest tokens each of them asked for.
    """

    token_ids: Tensor
    bad: Tensor
    logprobs: ops.Logprobs | None = None
    logprob_rows: Sequence[int] = ()
    logprob_widths: Sequence[int] = ()

    def to_host(self) -> HostSample:
        """Wait for the device and fetch all of it."""
        logprobs: list[TokenLogprobs | None] = [None] * len(self.token_ids)
        token_ids = self.token_ids.cpu()
        if self.logprobs is not None:
            rows = list(self.logprob_rows)
            found = to_host(token_ids[rows], self.logprobs, self.logprob_widths)
            for row, entry in zip(rows, found, strict=True):
                logprobs[row] = entry
        return HostSample(token_ids.numpy(), self.bad.cpu().numpy(), logprobs)


class Sampler:
    """Chooses tokens for up to ``max_num_seqs`` requests, each in a slot of its own."""

    def __init__(self, max_num_seqs: int, vocab_size: int, device: torch.device | str = "cpu") -> None:
        if vocab_size > ops.MAX_VOCAB_SIZE:
            raise ModelError(f"the model has {vocab_size} tokens; at most {ops.MAX_VOCAB_SIZE} are accepted")
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._table = np.zeros(max_num_seqs, _SLOT)
        self._edits = LogitEdits(self._device)
        self._counts = TokenCounts(vocab_size, self._device)

    def add(
        self,
        slot: int,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
        seed: int,
        eos_token_ids: Sequence[int] = (),
        bad_words_token_ids: Sequence[Sequence[int]] = (),
    ) -> None:
        """Let a request into ``slot``, in place of whichever was there.

        ``output_token_ids`` are all tokens that it has produced so far; it goes on as if it had never been
        away. ``seed`` is any whole number (its low 64 bits count). Token ids are within the vocabulary, bad
        words not empty.
        """
        self.remove(slot)
        top_k = params.top_k if params.top_k < self._vocab_size else 0
        logprobs = -1 if params.logprobs is None else params.logprobs
        penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        self._table[slot] = (
            max(params.temperature, _COLDEST) if params.temperature else 0,
            *(top_k, params.top_p, params.min_p, *penalties, seed % 2**64, len(output_token_ids), logprobs),
        )
        ends = [*eos_token_ids, *params.stop_token_ids]
        self._edits.add(slot, params, output_token_ids, ends, bad_words_token_ids)
        if penalties != (1, 0, 0):
            seen = prompt_token_ids if params.repetition_penalty != 1 else ()
            self._counts.add(slot, seen, output_token_ids)

    def remove(self, slot: int) -> None:
        """Forget the request in ``slot``; not needed before another ``add``, but it frees memory."""
        self._edits.remove(slot)
        self._counts.remove(slot)

    def sample(self, logits: Tensor, slots: Tensor) -> SampledTokens:
        """Choose the next token of each row, and take it over into the slots' state.

        ``logits`` float32 [S, V] on the sampler's device is used up: its contents change. ``slots`` int64 [S]
        names the slot of each row, none twice. It belongs on the host, where it comes from; elsewhere it is
        waited for.
        """
        where = slots.cpu().numpy()
        slot_list: list[int] = where.tolist()
        table = self._table[where]
        asked = np.flatnonzero(table["logprobs"] >= 0)
        raw = raw_rows(logits, asked) if len(asked) else None
        self._edits.apply(logits, slot_list, table["num_outputs"])
        self._penalise(logits, slot_list, table)
        token_ids, bad = self._choose(logits, table)
        self._record(slot_list, token_ids)
        if raw is None:
            return SampledTokens(token_ids, bad)
        widths = table["logprobs"][asked].tolist()
        logprobs = ops.gather_logprobs(raw, token_ids[self._to_device(asked)], max(widths))
        return SampledTokens(token_ids, bad, logprobs, asked.tolist(), widths)

    def _penalise(self, logits: Tensor, slots: list[int], table: np.ndarray) -> None:
        rows = [row for row, slot in enumerate(slots) if slot in self._counts]
        if rows:
            ids, counts = self._counts.entries(slots[row] for row in rows)
            strengths = (self._to_device(table[name][rows]) for name in ("repetition", "presence", "frequency"))
            ops.apply_penalties(logits, self._to_device(np.asarray(rows)), ids, counts, ops.Penalties(*strengths))

    def _choose(self, logits: Tensor, table: np.ndarray) -> tuple[Tensor, Tensor]:
        """Token ids int64 [S], and which rows have none, bool [S]. Only rows that filter pay for it."""
        drawn = table["temperature"] > 0
        filtered = drawn & ((table["top_k"] > 0) | (table["top_p"] < 1))
        token_ids = torch.zeros(len(table), dtype=torch.int64, device=self._device)
        for kind, choose in (
            (~drawn, self._greedy),
            (drawn & ~filtered, self._draw),
            (filtered, self._draw_filtered),
        ):
            if not kind.any():
                continue
            if kind.all():
                token_ids = choose(logits, table)
            else:
                rows = self._to_device(np.flatnonzero(kind))
                token_ids[rows] = choose(logits[rows], table[kind])
        bad = ~logits.amax(dim=1).isfinite()
        return token_ids.masked_fill_(bad, 0), bad

    def _greedy(self, logits: Tensor, table: np.ndarray) -> Tensor:
        return ops.greedy(logits)

    def _draw(self, logits: Tensor, table: np.ndarray) -> Tensor:
        return ops.sample(logits, self._filters(table))

    def _draw_filtered(self, logits: Tensor, table: np.ndarray) -> Tensor:
        return ops.sample_filtered(logits, self._filters(table))

    def _filters(self, table: np.ndarray) -> ops.Filters:
        numbers = uniform(table["seed"], table["num_outputs"].astype(np.uint64))
        rules = (table[name].copy() for name in ("temperature", "top_k", "top_p", "min_p"))
        return ops.Filters(*(self._to_device(values) for values in (numbers, *rules)))

    def _record(self, slots: list[int], token_ids: Tensor) -> None:
        self._table["num_outputs"][slots] += 1
        self._edits.record(slots, token_ids)
        counted = [row for row, slot in enumerate(slots) if slot in self._counts]
        if counted:
            self._counts.record((slots[row] for row in counted), token_ids[counted])

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)
