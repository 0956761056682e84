"""What became of one request."""

from __future__ import annotations

from itertools import pairwise

import msgspec


class Outcome(msgspec.Struct):
    """Times are in seconds of the monotonic clock, which processes of a machine share.

    Attributes:
        due, sent: when it should have been and was sent. Where a place must be free first, it is due then.
        times: when each piece of the answer came.
        ended: when the answer was complete, or it failed.
        prompt_tokens, output_tokens: as the server counts them; without its count, pieces stand for output tokens.
        left: the client hung up, as planned.
        malformed: it was no proper request, and was refused, as it should be.
        error: what went wrong, in few words that many requests share; None: nothing.
        said: the server's own words about it, on one line.
    """

    due: float
    sent: float = 0.0
    times: list[float] = []
    ended: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    left: bool = False
    malformed: bool = False
    error: str | None = None
    said: str = ""

    @property
    def complete(self) -> bool:
        """Whether it is an answer to be judged by its times."""
        return self.error is None and not self.left and not self.malformed

    @property
    def time_to_first_token(self) -> float | None:
        return self.times[0] - self.sent if self.times else None

    @property
    def gaps(self) -> list[float]:
        """Between pieces: the inter-token latencies, where each piece is a token."""
        return [later - earlier for earlier, later in pairwise(self.times)]

    @property
    def time_per_output_token(self) -> float | None:
        """The mean, after the first token; None where there is no second one."""
        if self.output_tokens < 2 or not self.times:
            return None
        return (self.times[-1] - self.times[0]) / (self.output_tokens - 1)

    @property
    def end_to_end(self) -> float:
        return self.ended - self.sent
