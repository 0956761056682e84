"""The pairs of ways that must agree, and what became of comparing them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.check.trace import Difference

PASS, FAIL, SKIPPED = "pass", "FAIL", "skipped"

RELATIVE = {"float32": 2e-4, "float16": 0.01, "bfloat16": 0.06, "rounded": 0.12, "int8": 0.1, "fp8": 0.2}
"""Dtype -> how far two orders of the same sums may be apart, as a share of the spread of the log-probabilities.

Rounding errors of a layer are relative to its numbers, and they add up over layers. "rounded": one of the two rounds
what weights of whole numbers are multiplied with to 8 bits, as a CPU does in bfloat16. "int8" and "fp8" are KV caches:
the last bit of a key decides to which of few levels it is rounded. Largest shares measured with SmolLM2 on a CPU, over
all pairs: float32 3e-6, bfloat16 0.035, rounded 0.066, with an int8 cache 0.035, with an fp8 cache 0.11. float16 is
between.
"""

BIT_FOR_BIT = 0.0

MEAN_OF_BITS = {8: 0.1, 4: 0.5}
"""Bits of a quantized weight -> by how many nats the log-probability of a text's tokens may change on average.

Quantized weights are another model: only its likeness is checked. Perplexity on a text says more: ``octavo eval``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """One pair.

    Attributes:
        name: "cached / uncached prefix".
        status: ``PASS``, ``FAIL`` or ``SKIPPED``.
        reason: why it was skipped or why it failed, else empty.
        largest, mean: difference of log-probabilities (those of logits up to a constant at each position), in nats.
        tolerance: what the judged one of them may be, and ``why``.
        agreeing, compared: greedy tokens that are the same, of those that can be compared.
        seconds: that the second way of the two took.
    """

    name: str
    status: str
    reason: str = ""
    largest: float = 0.0
    mean: float = 0.0
    tolerance: float = 0.0
    why: str = ""
    agreeing: int = 0
    compared: int = 0
    seconds: float = 0.0


def skipped(name: str, reason: str) -> PairResult:
    return PairResult(name=name, status=SKIPPED, reason=reason)


def judge(name: str, found: Difference, dtype: str, seconds: float, *, exact: bool = False) -> PairResult:
    """Two ways to compute the same: the largest difference decides."""
    tolerance = BIT_FOR_BIT if exact else RELATIVE[dtype] * max(found.spread, 1.0)
    why = "the same bits" if exact else f"{RELATIVE[dtype]:g} ({dtype}) of the spread {found.spread:.1f}"
    return _result(name, found, found.largest, tolerance, why, seconds)


def judge_quantized(name: str, found: Difference, bits: int, seconds: float) -> PairResult:
    """A model and its quantized form: the mean decides."""
    return _result(name, found, found.mean, MEAN_OF_BITS[bits], f"mean; {bits} bits are another model", seconds)


def _result(name: str, found: Difference, judged: float, tolerance: float, why: str, seconds: float) -> PairResult:
    reason = _reason(found, judged, tolerance)
    return PairResult(
        name=name,
        status=FAIL if reason else PASS,
        reason=reason,
        largest=found.largest,
        mean=found.mean,
        tolerance=tolerance,
        why=why,
        agreeing=found.agreeing,
        compared=found.compared,
        seconds=seconds,
    )


def _reason(found: Difference, judged: float, tolerance: float) -> str:
    """Why a pair fails, or ""."""
    if not found.compared:
        return "nothing was compared"
    if not found.largest < math.inf:
        return "a request failed, or a log-probability is not a number"
    return "" if judged <= tolerance else f"{judged:.3g} is more than {tolerance:.3g}"  # a NaN is never <=
