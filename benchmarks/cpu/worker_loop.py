"""The far end of `sides.py`: a process that holds one engine, and runs one round of work for each line that it reads.

It needs nothing but Python itself, since each engine runs in the environment that it was installed in.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """``sequences`` prompts of ``prompt`` random tokens, each to be completed by ``tokens`` tokens, greedily."""

    sequences: int
    prompt: int
    tokens: int
    seed: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Of token ids; special ones, which are the first in most vocabularies, are left out."""
        rng = random.Random(self.seed)
        return [[rng.randrange(1000, vocab_size) for _ in range(self.prompt)] for _ in range(self.sequences)]


@dataclass(frozen=True)
class Times:
    """Seconds of a round, and tokens: all prompts, and those that were decoded when all prompts were done."""

    prefill: float
    prompt_tokens: int
    decode: float
    decoded_tokens: int

    def rates(self) -> dict[str, float | None]:
        """Tokens a second; None where there were none."""
        return {
            "prefill": self.prompt_tokens / self.prefill if self.prompt_tokens else None,
            "decode": self.decoded_tokens / self.decode if self.decoded_tokens else None,
        }


def serve(start: Callable[..., tuple[Callable[[Work], Times], dict[str, Any]]]) -> None:
    """``start(model, **options)`` gives what runs a round, and facts for the record: versions and settings.

    The arguments are the process's: the model, and the options as JSON.
    """
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the standard error
    run, facts = start(sys.argv[1], **json.loads(sys.argv[2]))
    print(json.dumps(facts), file=pipe, flush=True)
    for line in sys.stdin:
        before = _processor_seconds()
        rates = run(Work(**json.loads(line))).rates()
        print(json.dumps({**rates, "processor_seconds": _processor_seconds() - before}), file=pipe, flush=True)


def _processor_seconds() -> float:
    """Of this process, and of its children that have ended."""
    return sum(os.times()[:4])
