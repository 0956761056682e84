"""The only values that leave the core: what a step shall do, what it did, and what that means.

All are frozen: a plan can be logged, sent to another process, replayed, drawn, asserted on. A plan carries
only what changed since the step before; the device keeps its own copy of the rest. Hundreds of these values
are made in a step, so they are msgspec structs, which are made several times faster than frozen dataclasses.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from octavo.outputs import Logprobs
from octavo.sampling_params import SamplingParams

TokenMasks = Mapping[int, bytes]
"""Slot -> which tokens may be sampled for it: bit i % 8 of byte i // 8 is token i; whole 32-bit words.

They follow a plan, because they depend on the tokens of the step before: the model computes meanwhile, and only the
sampling of these rows waits. A row that is ``masked`` but has no mask belongs to a request that has ended meanwhile.
"""


class AdapterLoad(msgspec.Struct, frozen=True):
    """A LoRA adapter that is to be on the device, as ``number``, from this step on; what was there is replaced."""

    number: int
    adapter_id: int


class NewRow(msgspec.Struct, frozen=True):
    """A request that enters the batch, for the first time or again after a preemption.

    Attributes:
        slot: its row in the device's persistent state until it leaves.
        token_bytes: every token known so far, prompt first: int64, as they lie in memory.
        num_prompt_tokens: how many of them are the prompt.
        seed: of its random numbers.
        eos_token_ids: the model's end tokens, as this request sees them (none with ``ignore_eos``).
        bad_words: token sequences that it may not produce.
        block_ids: KV blocks found in the prefix cache, in order.
        adapter: the number of its LoRA adapter on the device; 0: none.
    """

    slot: int
    request_id: str
    token_bytes: bytes
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    block_ids: tuple[int, ...]
    adapter: int = 0

    @property
    def token_ids(self) -> memoryview[int]:
        """The tokens as a sequence of numbers, without a copy."""
        return memoryview(self.token_bytes).cast("q")


class RowStep(msgspec.Struct, frozen=True):
    """What one row does in a step: compute tokens ``start`` to ``start + num_tokens - 1``.

    ``new_blocks`` are appended to the row's block table first. ``samples`` says that the last of the tokens
    is the last one known, so that the next token is sampled from its logits.
    """

    slot: int
    start: int
    num_tokens: int
    new_blocks: tuple[int, ...]
    samples: bool


class Admitted(msgspec.Struct, frozen=True):
    """A waiting request got a slot. ``num_cached_tokens`` of it were found in the prefix cache."""

    request_id: str
    slot: int
    num_cached_tokens: int


class Waits(msgspec.Struct, frozen=True):
    """A request could not be admitted, and why. Given for the head of the queue; the others wait for it."""

    request_id: str
    reason: str


class Preempted(msgspec.Struct, frozen=True):
    """A running request lost its blocks and waits again; what it had computed will be recomputed."""

    request_id: str
    reason: str


class Sampled(msgspec.Struct, frozen=True):
    """A token arrived for a request that still wants it."""

    request_id: str
    token_id: int
    logprobs: Logprobs | None = None


class PromptScored(msgspec.Struct, frozen=True):
    """Log-probabilities of prompt tokens ``start``, ``start + 1``, … arrived; again, after a preemption."""

    request_id: str
    start: int
    logprobs: tuple[Logprobs, ...]


class Embedded(msgspec.Struct, frozen=True):
    """The vector of a request that asked for one instead of a completion: H floats of length 1."""

    request_id: str
    vector: Sequence[float]


class Finished(msgspec.Struct, frozen=True):
    """A request is over: ``reason`` is "stop", "length", "abort", "error", or "refused": what it asks for cannot be
    had, though the model could go on; ``stop_reason`` says why.
    """

    request_id: str
    reason: str
    stop_reason: str | int | None = None


Event = Admitted | Waits | Preempted | Sampled | PromptScored | Embedded | Finished


class StepPlan(msgspec.Struct, frozen=True):
    """One step: which rows compute which tokens, and why the others do not.

    ``loads`` are done and ``entering`` rows installed before ``rows`` are run. ``masked`` are slot and request of each
    row that samples what a grammar allows: see `TokenMasks`. ``checksum`` is of the block tables of ``rows``, in the
    order of their slots (see `table_checksum`), or None outside debug mode. Rows that are idle in this
    step are left out, as the device cannot tell them from those that have left.
    """

    step: int
    rows: tuple[RowStep, ...]
    entering: tuple[NewRow, ...] = ()
    events: tuple[Event, ...] = ()
    masked: tuple[tuple[int, str], ...] = ()
    checksum: int | None = None
    loads: tuple[AdapterLoad, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    @property
    def num_sampled(self) -> int:
        return sum(row.samples for row in self.rows)


class StepResult(msgspec.Struct, frozen=True):
    """What a step brought.

    Attributes:
        token_ids: one for each row of the plan that samples, in the plan's order.
        logprobs: parallel to ``token_ids``; empty when no row asked.
        prompt_logprobs: slot -> log-probabilities of the prompt tokens that follow the ones computed in this
            step.
        errors: slot -> why its logits cannot be sampled from; what stands in ``token_ids`` for such a row is
            ignored.
        vectors: slot -> the vector of its prompt.
        refused: the slots whose logits were sound, but whose request's own options leave no token; else as ``errors``.
    """

    step: int
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprobs | None, ...] = ()
    prompt_logprobs: dict[int, tuple[int, tuple[Logprobs, ...]]] = msgspec.field(default_factory=dict)
    errors: dict[int, str] = msgspec.field(default_factory=dict)
    vectors: dict[int, Sequence[float]] = msgspec.field(default_factory=dict)
    refused: tuple[int, ...] = ()


def table_checksum(tables: Iterable[tuple[int, int, Iterable[int]]]) -> int:
    """A 32-bit checksum of (slot, tokens in the cache after the step, block ids) of each row."""
    value = 0
    for slot, start, blocks in tables:
        value = zlib.crc32(array("q", [slot, start, *blocks]).tobytes(), value)
    return value
