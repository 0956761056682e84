"""What the HTTP process may ask of an engine: the seam between `octavo.server` and whatever runs the model.

Implemented over ZeroMQ by `octavo.client.remote` and, for tests, by anything that has these methods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from octavo.errors import OctavoError
from octavo.lora import AdapterInfo as AdapterInfo
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams


class EngineDeadError(OctavoError):
    """The engine's process is gone, or its loop has failed for good; the message says why."""


class FailedError(OctavoError):
    """The engine failed at a request or a call that was fine; it goes on with others."""


class BusyError(OctavoError):
    """The request was not queued, because the queue is full or the server is ending.

    Attributes:
        retry_after: seconds after which it is worth another try.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineInfo(msgspec.Struct, frozen=True):
    """What does not change while the engine lives.

    Attributes:
        model: what was asked for (alias, repository, path).
        model_path: where it was found.
        tokenizer_path: where its tokenizer was found; empty: it has none.
        token_limit: longest prompt plus output, in tokens.
        generation: sampling options that the model's makers suggest, under the names of ``SamplingParams``.
        num_blocks, block_size: of the KV cache.
        ledger: who has the memory, as lines to print.
        can_embed: whether `embed` works.
        device: where it runs, in words.
        scheduling_policy: who comes first; see ``EngineConfig``.
    """

    model: str
    model_path: str
    version: str
    vocab_size: int
    token_limit: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    dtype: str
    device: str
    generation: Mapping[str, float] = msgspec.field(default_factory=dict)
    ledger: tuple[str, ...] = ()
    can_embed: bool = True
    max_loras: int = 0
    tokenizer_path: str = ""
    scheduling_policy: str = "fcfs"


class Load(msgspec.Struct, frozen=True):
    """How busy the engine is: a snapshot, at most a second old while it lives. Counters grow and never fall.

    Attributes:
        steps: steps that have come back; ``/health`` watches this.
        running, waiting: requests.
        waiting_tokens: tokens that the waiting ones have still to compute.
        blocks_used: KV blocks that unfinished requests hold.
        prompt_tokens, generated_tokens, cached_tokens, preemptions, finished: since the start; ``finished`` by reason.
        at: when it was taken, in seconds of the monotonic clock, which processes of a machine share.
    """

    steps: int = 0
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    blocks_used: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    finished: Mapping[str, int] = msgspec.field(default_factory=dict)
    at: float = 0.0


class EngineClient(Protocol):
    """An engine to talk to from an event loop. All methods are called from one loop, and none blocks it."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        lora: str | None = None,
        share_key: str = "",
        timeout: float | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncIterator[RequestOutput]:
        """Queue a request and yield its news, as ``LLM.stream`` does: ``text``, ``token_ids`` and ``logprobs`` of each
        output are what is new since the last one. News that pile up while the caller is busy are joined into one. The
        last one has ``finished`` true and complete ``metrics``. Leaving the iterator early aborts the request.

        Args:
            prompt: token ids, or text where the tokenizer shall run beside the engine.
            lora: the name of a loaded adapter.
            share_key: whose request it is, for fair shares.
            timeout: seconds from now after which it ends with finish reason "abort" and stop reason "deadline".

        Raises:
            RequestError: it can never be served, or its options leave no token to go on with (`FormError`: because of
                its form). BusyError: the queue is full. FailedError: the engine failed at it before it began.
                EngineDeadError: there is no engine.
        """
        ...

    async def embed(
        self,
        prompt: str | Sequence[int],
        *,
        request_id: str,
        priority: int = 0,
        lora: str | None = None,
        share_key: str = "",
        timeout: float | None = None,
    ) -> RequestOutput:
        """A finished output with ``embedding``; one that was aborted, or that the model failed at, has none, and its
        completion says why. Errors as in `generate`.
        """
        ...

    async def abort(self, request_id: str) -> bool:
        """End a request now: its iterator yields a last output with reason "abort". False if there is none."""
        ...

    def load(self) -> Load:
        """The newest snapshot. Never waits."""
        ...

    async def wait_failed(self) -> str:
        """Wait until the engine has died, and say why."""
        ...

    async def add_lora(self, name: str, path: str) -> AdapterInfo:
        """Load an adapter, beside the steps. RequestError: it does not suit, or there are too many."""
        ...

    async def remove_lora(self, name: str) -> None:
        """Forget an adapter; requests that use it are finished first. RequestError: there is none."""
        ...

    def loras(self) -> Sequence[AdapterInfo]: ...

    async def reset_prefix_cache(self) -> None: ...

    async def debug_check(self) -> dict[str, Any]:
        """Run the block pool's ``check()`` between two steps; what it counted. For tests and operators."""
        ...

    async def shutdown(self, drain: float) -> None:
        """Take no more requests, let the others finish for ``drain`` seconds, abort the rest, and end the engine."""
        ...
