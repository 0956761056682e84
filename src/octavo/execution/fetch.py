"""Tokens on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.execution.sampler import HostSample, SampledTokens
from octavo.kernels.sampling import Logprobs

_BAD, _BANNED = -1, -2
"""What stands for the token of a row that has none, and why: see `SampledTokens`."""


class Fetch:
    """Copies that were started, and what they are to become. ``wait`` waits for these copies alone."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        rows: Sequence[int] = (),
        widths: Sequence[int] = (),
        kept: np.ndarray | None = None,
    ) -> None:
        self._kept = kept
        self._host = [_start_copy(tensor) for tensor in tensors]
        self._rows, self._widths = rows, widths
        self._event: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    @classmethod
    def tokens(cls, tokens: Tensor, kept: np.ndarray | None = None) -> Fetch:
        """Of int64 ``[S]`` tokens, -1 where there is none; or of those that a mask ``[S]`` says."""
        return cls([tokens], kept=kept)

    @classmethod
    def of(cls, sampled: SampledTokens) -> Fetch:
        """Of tokens with log-probabilities."""
        tokens = sampled.token_ids.masked_fill(sampled.bad, _BAD)
        if sampled.banned is not None:
            tokens.masked_fill_(sampled.banned, _BANNED)
        return cls([tokens, *(sampled.logprobs or ())], sampled.logprob_rows, sampled.logprob_widths)

    def wait(self) -> HostSample:
        """The tokens; rows without one have token 0 and are ``bad``."""
        if self._event is not None:
            self._event.synchronize()
        tokens, *logprobs = self._host
        if self._kept is not None:
            tokens = tokens[torch.from_numpy(self._kept)]
        bad, banned = tokens < 0, tokens == _BANNED
        found = Logprobs(*logprobs) if logprobs else None
        return SampledTokens(tokens.masked_fill(bad, 0), bad, found, self._rows, self._widths, banned).to_host()


def _start_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
