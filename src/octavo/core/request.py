"""A request while it lives in the core."""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from octavo.core.adapters import Adapter
from octavo.core.blocks import chain_hashes
from octavo.core.plan import Finished
from octavo.errors import RequestError
from octavo.outputs import RequestMetrics
from octavo.sampling_params import SamplingParams

_NONE_OF_FORM = (
    "no token is left: the request's other options (min_tokens, allowed_token_ids, bad_words) ban all that its grammar "
    "allows"
)


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


def token_array(token_ids: Iterable[int]) -> array[int]:
    """Token ids as int64, one behind the other: they are checked, hashed and copied without a look at each.

    Raises:
        TypeError, OverflowError: one is no whole number, or too large.
    """
    return array("q", token_ids)


@dataclass(slots=True, eq=False)
class Request:
    """One sequence of tokens that grows: each step moves ``num_computed`` towards ``num_tokens``.

    Attributes:
        tokens: prompt and output as far as their values are known here; see `token_array`.
        num_computed: tokens whose keys and values are in the cache once the steps planned so far have run.
        num_pending: tokens that planned steps will sample and whose values have not arrived yet.
        max_tokens: output tokens at most, after the model's length was taken into account.
        eos_token_ids: end tokens; empty with ``ignore_eos``.
        bad_words: token sequences that may not be produced.
        held: why it may not run yet, whatever is free; an empty string for nearly all.
        adapter: its LoRA adapter, or None.
        adapter_number: the place of its adapter on the device while it runs; 0: none.
        block_hashes: of its full blocks of known tokens, as far as they were needed.
        num_registered: how many of its blocks the pool was told the hash of.
        last_step: the last step that it takes part in, or -1.
        share_key: whose it is, for fair shares.
        num_charged: tokens that its key was charged for; what is computed again is the engine's own expense.
        num_queued_tokens: tokens that it had when it last began to wait.
        set_aside_at: when it was first set aside while it waits this time (`octavo.core.waiting`); None: it was not.
    """

    id: str
    tokens: array[int]
    params: SamplingParams
    max_tokens: int
    seed: int = 0
    eos_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    salt: bytes = b""
    held: str = ""
    adapter: Adapter | None = None
    num_prompt_tokens: int = -1
    sequence: int = 0
    status: Status = Status.WAITING
    slot: int = -1
    adapter_number: int = 0
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_pending: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    last_step: int = -1
    share_key: str = ""
    num_charged: int = 0
    num_queued_tokens: int = 0
    set_aside_at: float | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    def __post_init__(self) -> None:
        if self.num_prompt_tokens < 0:
            self.num_prompt_tokens = len(self.tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens that exist once the planned steps have run, whether or not their values are known here."""
        return len(self.tokens) + self.num_pending

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_remaining(self) -> int:
        """Tokens to compute before the next one can be sampled; 0 if none is wanted or can be planned."""
        num_tokens = len(self.tokens) + self.num_pending
        if num_tokens - self.num_prompt_tokens >= self.max_tokens:
            return 0
        return num_tokens - self.num_computed

    @property
    def uses_prefix_cache(self) -> bool:
        """Scores of prompt tokens come from computing them, so such a request cannot skip any."""
        return self.params.prompt_logprobs is None

    def check_fits(self, token_limit: int) -> None:
        """Raise ``RequestError``, which says what would fit, unless prompt and output do."""
        prompt, output = self.num_prompt_tokens, self.max_tokens
        if prompt == 0:
            raise RequestError("the prompt is empty; at least one token is needed")
        if prompt >= token_limit:
            most = token_limit - 1
            raise RequestError(
                f"the prompt has {prompt} tokens; at most {most} are accepted, to leave room for one more"
            )
        if not 1 <= output <= token_limit - prompt:
            raise RequestError(
                f"a prompt of {prompt} tokens and max_tokens={output} need {prompt + output} tokens, of "
                f"{token_limit}; max_tokens from 1 to {token_limit - prompt} is accepted"
            )

    def hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """The chained hashes of its first ``num_blocks`` blocks, whose tokens must all be known."""
        known = self.block_hashes
        if len(known) < num_blocks:
            tokens = self.tokens[len(known) * block_size : num_blocks * block_size]
            known += chain_hashes(known[-1] if known else self._root, tokens, block_size)
        return known[:num_blocks]

    @property
    def _root(self) -> bytes:
        """What stands for the block before the first."""
        return self.salt if self.adapter is None else self.adapter.salt + self.salt

    def fail(self, now: float) -> Finished:
        """End it with "error", whatever state it is in."""
        self.status = Status.FINISHED
        self.blocks, self.slot, self.adapter_number = [], -1, 0
        self.metrics.finished_time = now
        return Finished(self.id, "error")

    def why_no_token(self) -> str:
        """What is wrong with its options if they leave no token after the output so far."""
        params = self.params
        if params.structured_outputs is not None:
            return _NONE_OF_FORM
        may_not_stop = self.num_output_tokens < params.min_tokens and bool(self.eos_token_ids or params.stop_token_ids)
        bans = {
            "allowed_token_ids": params.allowed_token_ids is not None,
            "bad_words": bool(self.bad_words),
            "min_tokens (no stop token before it)": may_not_stop,
        }
        names = ", ".join(name for name, given in bans.items() if given)
        return f"{names}: every token is banned; accepted: options that leave at least one"

    def stop_after(self, token_id: int) -> tuple[str, int | None] | None:
        """Why it ends with ``token_id`` as its last token: (finish reason, stop token), or None to go on."""
        num_output = len(self.tokens) - self.num_prompt_tokens
        if num_output >= self.params.min_tokens:
            if token_id in self.eos_token_ids:
                return "stop", None
            if token_id in self.params.stop_token_ids:
                return "stop", token_id
        return ("length", None) if num_output >= self.max_tokens else None
