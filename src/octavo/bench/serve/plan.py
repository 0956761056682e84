"""The requests to send, as values: made before the first one is sent, so that making them costs no time then."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.bench.serve.malformed import KINDS

Prompt = str | list[int]


class Planned(msgspec.Struct, frozen=True):
    """A request to be sent.

    Attributes:
        at: seconds after the start.
        output_len: tokens to ask for.
        leave_after: pieces of the answer after which the client hangs up; None: it stays.
        malformed: what is wrong with the body, one of `malformed.KINDS`; None: nothing.
    """

    at: float
    prompt: Prompt
    output_len: int
    leave_after: int | None = None
    malformed: str | None = None


def make_plan(
    rng: random.Random,
    times: Sequence[float],
    prompts: Sequence[Prompt],
    output_lens: Sequence[int],
    disconnect: float = 0.0,
    malformed: float = 0.0,
) -> list[Planned]:
    """A request at each of ``times``. ``disconnect`` and ``malformed`` are the shares that hang up and are wrong.

    A third of those that hang up does so before the answer, a third at its first piece, a third anywhere: a busy server
    joins tokens, so that few answers have as many pieces as tokens.
    """
    plan = []
    for at, prompt, output_len in zip(times, prompts, output_lens, strict=True):
        fate = rng.random()
        more: dict[str, Any] = {}
        if fate < malformed:
            more["malformed"] = rng.choice(KINDS)
        elif fate < malformed + disconnect:
            more["leave_after"] = rng.choice((0, 1, rng.randrange(output_len)))
        plan.append(Planned(at, prompt, output_len, **more))
    return plan
