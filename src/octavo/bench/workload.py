"""What the benchmarks ask of the engine: random tokens in, a fixed number out."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from octavo.errors import OctavoError, UsageError
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class LengthRange:
    """A number of tokens, drawn evenly from ``low`` to ``high``, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> LengthRange:
        """From ``N`` or ``A:B``. Raises ``UsageError``."""
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text.strip())
        if match is None:
            raise UsageError(f"{text!r} is no length; accepted: N or A:B, in tokens")
        low, high = int(match[1]), int(match[2] or match[1])
        if not 1 <= low <= high:
            raise UsageError(f"{text!r} is no length; accepted: N from 1, or A:B with A at most B")
        return cls(low, high)

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@dataclass(frozen=True, slots=True)
class Work:
    """One request: random token ids, and how many to answer with."""

    token_ids: list[int]
    output_len: int

    @property
    def params(self) -> SamplingParams:
        """Sampled at temperature 1, and always to its full length."""
        return SamplingParams(max_tokens=self.output_len, ignore_eos=True)


def random_work(
    rng: random.Random, count: int, vocab_size: int, input_len: LengthRange, output_len: LengthRange
) -> list[Work]:
    """``count`` requests that have nothing in common, so that the prefix cache is of no help."""
    return [Work(rng.choices(range(vocab_size), k=input_len.draw(rng)), output_len.draw(rng)) for _ in range(count)]


def check_complete(output: RequestOutput, work: Work) -> None:
    """Raise ``OctavoError`` unless a finished request has its full length: else the figures would mean nothing."""
    for completion in output.outputs:
        if len(completion.token_ids) != work.output_len:
            why = completion.stop_reason or completion.finish_reason
            raise OctavoError(f"a request ended after {len(completion.token_ids)} of {work.output_len} tokens: {why}")
