"""A step that was computed once, ready to be computed again with other tokens."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from octavo.kernels.forward_batch import ForwardBatch


class Recording(Protocol):
    """What a backend did for one batch, without the Python that led to it."""

    def replay(self, batch: ForwardBatch) -> Tensor:
        """Do it for ``batch``, which has as many rows as the recorded one, each of one token.

        Returns:
            What the recorded computation returned; it is good until anything else is recorded or replayed.
        """
        ...
