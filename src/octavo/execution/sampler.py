"""The sampler: logits in, one token for each row out, as each request's ``SamplingParams`` want it.

The order of work, which is vLLM's:

====  ========================================  ==========================================================
step  what                                      acts on
====  ========================================  ==========================================================
0     log-probabilities                         the raw logits, before anything below
1     a grammar's mask, allowed_token_ids       all other tokens become -inf
2     bad_words                                 the last token of a word whose beginning ends the output
3     min_tokens                                EOS and stop tokens, while the output is too short
4     logit_bias                                added
5     repetition, frequency, presence penalty   tokens of prompt and output; of the output; of the output
6     temperature 0                             takes the likeliest token: done
7     temperature                               divides
8     min_p                                     a share of the likeliest token's probability
9     top_k, top_p                              of the tokens that are left
10    draw                                      with random numbers made of (seed, output length)
====  ========================================  ==========================================================

What steps 1 to 3 ban stays banned: nothing below raises a logit of -inf. A row with nothing left has no token.

Steps 6 to 10 are `Ops.sample`. A step in which no row wants any of the others needs nothing else: its parameters
come from ``fast_params``, and a graph may hold the rest.

State has two homes. What the host knows before a step (parameters, seeds, how many tokens each row has
produced) lives on the host. What hangs on the tokens themselves (counts for penalties, the end of the output
for bad words) lives on the device and is brought up to date there, so that the next step need not wait for
the host to see the last one's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import NewRow, TokenMasks
from octavo.errors import ModelError
from octavo.execution.logit_edits import ALWAYS, LogitEdits
from octavo.execution.logprobs import TokenLogprobs, raw_rows, to_host
from octavo.execution.token_counts import TokenCounts
from octavo.kernels import for_device
from octavo.kernels.ops import Ops
from octavo.kernels.reference import sampling as edits
from octavo.kernels.sampling import PARAM_WORDS, PARAMS, Logprobs
from octavo.kernels.transfer import to_device
from octavo.sampling_params import SamplingParams

_COLDEST = 1e-30  # a smaller temperature may be 0 in float32; long before, nothing but the likeliest token is left
_LEAST_REPETITION = 1e-30  # what is divided by less may be infinite in float32; no other token has a chance long before

_EXTRAS = np.dtype(
    [
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("logprobs", np.int64),  # -1: none
    ]
)
"""What the host knows of a slot beside its `PARAMS`."""


class HostSample(NamedTuple):
    """``SampledTokens`` on the host: token ids int64 [S], bad and banned rows bool [S], log-probabilities or None."""

    token_ids: np.ndarray
    bad: np.ndarray
    banned: np.ndarray
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
        banned: bool [S]: the bad rows whose logits were finite before steps 1 to 3, so that it is the request's own
            options that leave no token; None where no row's options could.
    """

    token_ids: Tensor
    bad: Tensor
    logprobs: Logprobs | None = None
    logprob_rows: Sequence[int] = ()
    logprob_widths: Sequence[int] = ()
    banned: Tensor | None = None

    def to_host(self) -> HostSample:
        """Wait for the device and fetch all of it."""
        logprobs: list[TokenLogprobs | None] = [None] * len(self.token_ids)
        token_ids = self.token_ids.cpu()
        if self.logprobs is not None:
            rows = list(self.logprob_rows)
            found = to_host(token_ids[rows], self.logprobs, self.logprob_widths)
            for row, entry in zip(rows, found, strict=True):
                logprobs[row] = entry
        bad = self.bad.cpu().numpy()
        banned = np.zeros_like(bad) if self.banned is None else self.banned.cpu().numpy()
        return HostSample(token_ids.numpy(), bad, banned, logprobs)


class Sampler:
    """Chooses tokens for up to ``max_num_seqs`` requests, each in a slot of its own."""

    def __init__(
        self, max_num_seqs: int, vocab_size: int, device: torch.device | str = "cpu", ops: Ops | None = None
    ) -> None:
        """``ops`` are those of ``device`` if not given."""
        if vocab_size > edits.MAX_VOCAB_SIZE:
            raise ModelError(f"the model has {vocab_size} tokens; at most {edits.MAX_VOCAB_SIZE} are accepted")
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._ops = ops or for_device(self._device)
        self._table = np.zeros(max_num_seqs, PARAMS)
        self._words = self._table.view(np.int32).reshape(max_num_seqs, PARAM_WORDS)
        self._positions = self._table["position"]
        self._extras = np.zeros(max_num_seqs, _EXTRAS)
        self._filters = np.zeros(max_num_seqs, np.bool_)
        # From this output length on, a token depends on its `PARAMS` and the raw logits alone.
        self._edited_until = np.zeros(max_num_seqs, np.int64)
        self._edits = LogitEdits(vocab_size, self._device)
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
        self._table[slot] = row = self._params(params, seed, len(output_token_ids))
        self._filters[slot] = row[0] > 0 and row[1:4] != (0, 1, 0)
        ends = [*eos_token_ids, *params.stop_token_ids]
        self._edits.add(slot, params, output_token_ids, ends, bad_words_token_ids)
        repetition = max(params.repetition_penalty, _LEAST_REPETITION)
        penalties = repetition, params.presence_penalty, params.frequency_penalty
        if penalties != (1, 0, 0):
            seen = prompt_token_ids if params.repetition_penalty != 1 else ()
            self._counts.add(slot, seen, output_token_ids)
        logprobs = -1 if params.logprobs is None else params.logprobs
        always = logprobs >= 0 or slot in self._counts
        self._extras[slot] = *penalties, logprobs
        self._edited_until[slot] = ALWAYS if always else self._edits.ends(slot)

    def enter(self, row: NewRow) -> None:
        """``add`` for a request that enters the batch."""
        prompt, output = row.token_ids[: row.num_prompt_tokens], row.token_ids[row.num_prompt_tokens :]
        self.add(
            row.slot,
            row.params,
            prompt,
            output,
            seed=row.seed,
            eos_token_ids=row.eos_token_ids,
            bad_words_token_ids=row.bad_words,
        )

    def _params(self, params: SamplingParams, seed: int, num_outputs: int) -> tuple[float, ...]:
        """A record of `PARAMS`."""
        temperature = max(params.temperature, _COLDEST) if params.temperature else 0
        top_k = params.top_k if 0 < params.top_k < self._vocab_size else 0
        return temperature, top_k, params.top_p, params.min_p, seed % 2**64, num_outputs

    def remove(self, slot: int) -> None:
        """Forget the request in ``slot``; not needed before another ``add``, but it frees memory."""
        self._edits.remove(slot)
        self._counts.remove(slot)

    def needs_edits(self, slots: np.ndarray) -> bool:
        """Whether any of ``slots`` int64 [S] asks for more than ``fast_params`` says: an edit of its logits, a
        penalty, log-probabilities. Such a step takes ``sample``.
        """
        return bool(np.count_nonzero(self._edited_until[slots] > self._positions[slots]))

    def needs_filters(self, slots: np.ndarray) -> bool:
        """Whether any of ``slots`` int64 [S] draws with min-p, top-k or top-p: the ``filters`` of `Ops.sample`."""
        return bool(np.count_nonzero(self._filters[slots]))

    def fast_params(self, slots: np.ndarray, out: np.ndarray) -> None:
        """Write the `Ops.sample` parameters of ``slots`` int64 [S], none twice, to ``out`` int32 [S, PARAM_WORDS],
        and count the token that each is about to get.
        """
        self._words.take(slots, 0, out, "clip")
        self._positions[slots] += 1

    def sample(self, logits: Tensor, slots: Tensor, masks: TokenMasks | None = None) -> SampledTokens:
        """Choose the next token of each row, and take it over into the slots' state.

        ``masks`` are those of the slots that have one.

        ``logits`` float32 [S, V] on the sampler's device is used up: its contents change. ``slots`` int64 [S]
        names the slot of each row, none twice. It belongs on the host, where it comes from; elsewhere it is
        waited for.
        """
        where, masks = slots.cpu().numpy(), masks or {}
        slot_list: list[int] = where.tolist()
        extras = self._extras[where]
        asked = np.flatnonzero(extras["logprobs"] >= 0)
        raw = raw_rows(logits, asked) if len(asked) else None
        masked, others = self._rows(slot_list, masks), self._rows(slot_list, self._edits.can_ban_all)
        finite = _finite(logits, [rows for rows in (masked, others) if rows is not None])
        if masked is not None:
            self._mask(logits, masked, [masks[slot] for slot in slot_list if slot in masks])
        self._edits.apply(logits, slot_list, self._positions[where])
        self._penalise(logits, slot_list, extras)
        token_ids, bad = self._choose(logits, where)
        self._record(slot_list, token_ids)
        banned = None if finite is None else bad & finite
        if raw is None:
            return SampledTokens(token_ids, bad, banned=banned)
        widths = extras["logprobs"][asked].tolist()
        logprobs = self._ops.gather_logprobs(raw, token_ids[self._to_device(asked)], max(widths))
        return SampledTokens(token_ids, bad, logprobs, asked.tolist(), widths, banned)

    def sample_plain(self, logits: Tensor, slots: np.ndarray) -> SampledTokens:
        """``sample`` for slots of which none ``needs_edits`` nor has a mask; ``logits`` [S, V], float32 or the model's
        dtype, stay as they are.
        """
        return SampledTokens(*self._choose(logits, slots))

    def _rows(self, slots: list[int], chosen: Collection[int]) -> Tensor | None:
        """The rows whose slot is ``chosen``, int64 [N] on the device; None without any."""
        rows = [row for row, slot in enumerate(slots) if slot in chosen] if chosen else []
        return self._to_device(np.asarray(rows)) if rows else None

    def _mask(self, logits: Tensor, rows: Tensor, masks: Sequence[bytes]) -> None:
        """Apply a mask to each of ``rows``."""
        words = np.stack([np.frombuffer(mask, np.int32) for mask in masks])
        self._ops.apply_token_bitmask(logits, rows, self._to_device(words))

    def _penalise(self, logits: Tensor, slots: list[int], extras: np.ndarray) -> None:
        rows = [row for row, slot in enumerate(slots) if slot in self._counts]
        if rows:
            ids, counts = self._counts.entries(slots[row] for row in rows)
            strengths = (self._to_device(extras[name][rows]) for name in ("repetition", "presence", "frequency"))
            where = self._to_device(np.asarray(rows))
            edits.apply_penalties(logits, where, ids, counts, edits.Penalties(*strengths))

    def _choose(self, logits: Tensor, slots: np.ndarray) -> tuple[Tensor, Tensor]:
        """Token ids int64 [S], and which rows have none, bool [S]."""
        params = np.empty((len(slots), PARAM_WORDS), np.int32)
        self.fast_params(slots, params)
        return self._ops.sample(logits, self._to_device(params), filters=self.needs_filters(slots))

    def _record(self, slots: list[int], token_ids: Tensor) -> None:
        self._edits.record(slots, token_ids)
        counted = [row for row, slot in enumerate(slots) if slot in self._counts]
        if counted:
            made = token_ids[self._to_device(np.asarray(counted))]
            self._counts.record((slots[row] for row in counted), made)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return to_device(values, self._device)


def _finite(logits: Tensor, groups: Sequence[Tensor]) -> Tensor | None:
    """Which rows of ``groups``, int64 [N] each, have a finite maximum, bool [S]; False for others. None without any."""
    if not groups:
        return None
    finite = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for rows in groups:
        finite.index_copy_(0, rows, logits.index_select(0, rows).amax(1).isfinite())
    return finite
