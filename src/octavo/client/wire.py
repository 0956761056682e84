"""What the two processes say to each other: MessagePack, by msgspec.

All that comes often is written without field names. A step makes one message, `News`, whatever it holds. A request is
known by a ``key``, a number that the client gives out and never uses twice.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from octavo.client.verbs import EngineInfo, Load
from octavo.config import EngineConfig
from octavo.errors import RequestError, UsageError
from octavo.outputs import Logprobs, RequestMetrics
from octavo.sampling_params import SamplingParams

# ---------------------------------------------------------------- to the engine


class Limits(msgspec.Struct, frozen=True):
    """What is held back.

    Attributes:
        max_queue: requests that may wait because the batch has no row for them. None: any number.
        max_queue_tokens: tokens of all that wait. None: any number.
        stream_interval_ms: so often a stream's new tokens are told, those of several steps together; the first and the
            last at once. 0: after each step. None: as it suits the device (see `octavo.engine_process.pace`).
    """

    max_queue: int | None = None
    max_queue_tokens: int | None = None
    stream_interval_ms: float | None = None

    def __post_init__(self) -> None:
        if self.stream_interval_ms is not None and not 0 <= self.stream_interval_ms < math.inf:
            raise UsageError(f"stream_interval_ms is {self.stream_interval_ms}; accepted: milliseconds, from 0 on")


class Start(msgspec.Struct, frozen=True):
    """What the process needs to begin with."""

    config: EngineConfig
    limits: Limits


class Generate(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A new request. The fields are the arguments of ``EngineClient.generate``.

    Attributes:
        prompt: text, or token ids, which are checked where they are taken in.
        deadline: when it ends at the latest, in seconds of the monotonic clock.
        embed: a vector is wanted instead of a completion; ``params`` are then not used.
    """

    key: int
    request_id: str
    prompt: str | list[Any]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    lora: str | None = None
    share_key: str = ""
    deadline: float | None = None
    add_special_tokens: bool = True
    embed: bool = False


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """End a request, if it has not ended."""

    key: int


class Call(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One of the rarer verbs, answered by an `Answer` with the same key."""

    key: int
    verb: str
    arguments: tuple[Any, ...] = ()


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The first message: it has reached the engine, so others will."""


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """End the process."""


ToEngine = Hello | Generate | Abort | Call | Stop

# ---------------------------------------------------------------- from the engine


class Loading(msgspec.Struct, frozen=True, tag=True):
    """A part of the start is done."""

    phase: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine takes requests from now on."""

    info: EngineInfo


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is new in one completion of a request: a ``CompletionOutput``, and whose it is."""

    key: int
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[Logprobs] | None
    cumulative_logprob: float | None
    finish_reason: str | None
    stop_reason: str | int | None


class Begun(msgspec.Struct, frozen=True, array_like=True):
    """The token ids of a prompt that came as text."""

    key: int
    prompt_token_ids: list[int]


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """The log-probabilities of all of a prompt's tokens."""

    key: int
    prompt_logprobs: list[Logprobs | None]


class End(msgspec.Struct, frozen=True, array_like=True):
    """The last that is heard of a request. ``embedding`` are float32 as they lie in memory."""

    key: int
    metrics: RequestMetrics
    embedding: bytes | None = None


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """The request was not taken, or does not go on.

    Attributes:
        retry_after: because there are too many; seconds. None: it never can be.
        kind: what is to blame: the "request"; its "form", which cannot be used with this model, or not any further; or
            a "failure" here.
    """

    key: int
    message: str
    retry_after: float | None = None
    kind: Literal["request", "form", "failure"] = "request"


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a `Call` gave, or why it was refused, or that it has ``failed`` though nothing was wrong with it."""

    key: int
    value: Any = None
    error: str | None = None
    failed: bool = False


class News(msgspec.Struct, tag=True, omit_defaults=True):
    """All that happened since the last message. What concerns one request is to be read in the order of the fields."""

    begun: list[Begun] = []
    scored: list[Scored] = []
    pieces: list[Piece] = []
    ends: list[End] = []
    refused: list[Refused] = []
    answers: list[Answer] = []
    load: Load | None = None


FromEngine = Loading | Ready | News

# ---------------------------------------------------------------- bytes

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_start = msgspec.msgpack.Decoder(Start)


def encode(message: ToEngine | FromEngine | Start) -> bytes:
    return _encoder.encode(message)


def encode_request(message: Generate) -> bytes:
    """Raises ``RequestError`` for what MessagePack has no form for: half a surrogate pair, a number beyond 64 bits."""
    try:
        return _encoder.encode(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"the request cannot be sent to the engine: {error}") from None


def decode_start(data: bytes) -> Start:
    return _start.decode(data)


def decode_to_engine(data: bytes) -> ToEngine:
    """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` for bytes that are none of the messages."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    return _from_engine.decode(data)


def key_of(data: bytes) -> int | None:
    """The key in a message to the engine that could not be decoded, if it has one: whoever sent it is waiting."""
    try:
        fields = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    keyed = isinstance(fields, list) and len(fields) > 1 and type(fields[1]) is int
    return fields[1] if keyed else None
