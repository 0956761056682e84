"""Many outcomes as a few numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from octavo.bench.serve.outcome import Outcome
from octavo.bench.summary import Summary
from octavo.errors import UsageError

Bounds = Mapping[str, float]
"""Names of `_JUDGED` -> the most seconds that a good request has."""

_JUDGED: dict[str, Callable[[Outcome], float | None]] = {
    "ttft": lambda outcome: outcome.time_to_first_token,
    "itl": lambda outcome: max(outcome.gaps, default=None),
    "tpot": lambda outcome: outcome.time_per_output_token,
    "e2e": lambda outcome: outcome.end_to_end,
}


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds. Only answers that are complete have times and count as tokens.

    Attributes:
        completed, left, malformed: requests that were answered; that hung up, as planned; that were refused, as
            they should be.
        errors: all others, by what went wrong.
        seconds: from the first sending to the last end.
        inter_token: between two pieces of an answer.
        time_per_output_token: a request's mean, after its first token.
        lateness: how much later than planned requests were sent.
        goodput: complete requests a second within ``bounds``; None without bounds.
        busy: the share of the time that the client's busiest process computed.
    """

    requests: int
    completed: int
    left: int
    malformed: int
    errors: dict[str, int]
    seconds: float
    prompt_tokens: int
    output_tokens: int
    time_to_first_token: Summary | None
    inter_token: Summary | None
    time_per_output_token: Summary | None
    end_to_end: Summary | None
    lateness: Summary | None
    bounds: dict[str, float]
    goodput: float | None
    busy: float

    @property
    def rates(self) -> dict[str, float]:
        """A second."""
        return {
            "requests_per_second": self.completed / self.seconds,
            "output_tokens_per_second": self.output_tokens / self.seconds,
            "total_tokens_per_second": (self.prompt_tokens + self.output_tokens) / self.seconds,
        }

    def as_values(self) -> dict[str, Any]:
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {**values, **self.rates}


def figures_of(outcomes: Sequence[Outcome], bounds: Bounds, busy: float = 0.0) -> Figures:
    """Of at least one outcome."""
    complete = [outcome for outcome in outcomes if outcome.complete]
    seconds = max(max(o.ended for o in outcomes) - min(o.sent for o in outcomes), 1e-9)
    return Figures(
        requests=len(outcomes),
        completed=len(complete),
        left=sum(outcome.left for outcome in outcomes),
        malformed=sum(outcome.malformed for outcome in outcomes),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None).most_common()),
        seconds=seconds,
        prompt_tokens=sum(outcome.prompt_tokens for outcome in complete),
        output_tokens=sum(outcome.output_tokens for outcome in complete),
        time_to_first_token=_summary([outcome.time_to_first_token for outcome in complete]),
        inter_token=Summary.of(list(chain.from_iterable(outcome.gaps for outcome in complete))),
        time_per_output_token=_summary([outcome.time_per_output_token for outcome in complete]),
        end_to_end=_summary([outcome.end_to_end for outcome in complete]),
        lateness=Summary.of([max(outcome.sent - outcome.due, 0.0) for outcome in outcomes]),
        bounds=dict(bounds),
        goodput=sum(is_good(outcome, bounds) for outcome in complete) / seconds if bounds else None,
        busy=busy,
    )


def is_good(outcome: Outcome, bounds: Bounds) -> bool:
    """Whether a complete request keeps all bounds; what it does not have (gaps, of one token) breaks none."""
    values = ((_JUDGED[name](outcome), bound) for name, bound in bounds.items())
    return all(value is None or value <= bound for value, bound in values)


def parse_bounds(text: str) -> dict[str, float]:
    """From ``ttft:500 itl:50``, in milliseconds, to seconds. Raises ``UsageError``."""
    bounds = {}
    for word in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)", word)
        if match is None or match[1] not in _JUDGED:
            raise UsageError(f"{word!r} is no bound; accepted: {', '.join(f'{name}:MS' for name in _JUDGED)}")
        bounds[match[1]] = float(match[2]) / 1000
    return bounds


def _summary(values: Sequence[float | None]) -> Summary | None:
    return Summary.of([value for value in values if value is not None])
