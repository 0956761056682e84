"""The lines of batch files, in and out: from bytes to a job, from an answer to bytes. Nothing is done here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.openai.decode import decode_body
from octavo.openai.errors import ErrorBody, FieldError
from octavo.openai.responses import ChatCompletion, Completion
from octavo.openai.schema import Body, ChatCompletionRequest, CompletionRequest

ENDPOINTS: dict[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
}
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "timeout": (),
    "cache_salt": ("",),
    "add_special_tokens": (),
    "truncate_prompt_tokens": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "echo": (False,),
    "suffix": ("",),
    "chat_template": (),
    "parallel_tool_calls": (True,),
}
"""Fields of a server's requests that make no sense in a file, or are not supported there."""

PREFIX = b'{"id":"batch_req_'
"""How every output line begins."""

INVALID_LINE = "invalid_line"
DUPLICATE = "duplicate_custom_id"

_REQUIRED = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Envelope:
    """An input line whose ``custom_id`` is known; the other fields are still JSON."""

    number: int
    custom_id: str
    fields: dict[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Job:
    """A request to run. ``number`` is that of its line, from 1."""

    number: int
    custom_id: str
    body: Body


class Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: ChatCompletion | Completion | ErrorBody


class OutputLine(msgspec.Struct):
    """An output line. A refused request has an answer too, with its status and an error as its body."""

    id: str
    custom_id: str | None
    response: Response
    error: None = None


class _SeenError(msgspec.Struct):
    code: str | None = None


class _SeenBody(msgspec.Struct):
    error: _SeenError | None = None


class _SeenResponse(msgspec.Struct):
    body: _SeenBody


class SeenLine(msgspec.Struct):
    """As much of an output line as tells which input line it belongs to."""

    id: str
    custom_id: str | None
    response: _SeenResponse

    @property
    def key(self) -> str | None:
        """The custom id that is done with, or None if only the line is: it has no id, or one that is taken."""
        error = self.response.body.error
        return None if error is not None and error.code in (INVALID_LINE, DUPLICATE) else self.custom_id


def line_id(number: int) -> str:
    """The name of an input line in the output; the same each time the file is run."""
    return f"batch_req_{number}"


def parse_envelope(number: int, data: bytes) -> Envelope:
    """Find a line's ``custom_id``. Raises ``FieldError`` if it cannot be told apart from others by one."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FieldError(f"line {number} is not a JSON object: {error}", code=INVALID_LINE) from None
    custom_id = _plain(fields.get("custom_id"))
    if not isinstance(custom_id, str):
        raise FieldError(f"line {number} has no custom_id that is a string", "custom_id", INVALID_LINE)
    return Envelope(number, custom_id, fields)


def parse_job(envelope: Envelope) -> Job:
    """Read the request in a line. Raises ``FieldError``, naming the field that is at fault."""
    fields = envelope.fields
    for name in fields:
        if name not in _REQUIRED:
            raise FieldError(f"there is no field {name!r}; accepted: {', '.join(_REQUIRED)}", name)
    method, url = _plain(fields.get("method")), _plain(fields.get("url"))
    if method != "POST":
        raise FieldError(f"method is {method!r:.40}; accepted: POST", "method")
    if not isinstance(url, str) or url not in ENDPOINTS:
        raise FieldError(f"url is {url!r:.80}; accepted: {', '.join(ENDPOINTS)}", "url")
    if "body" not in fields:
        raise FieldError("body is missing", "body")
    return Job(envelope.number, envelope.custom_id, decode_body(fields["body"], ENDPOINTS[url], UNSUPPORTED))


def encode_line(
    number: int,
    custom_id: str | None,
    request_id: str,
    body: ChatCompletion | Completion | ErrorBody,
    status: int = 200,
) -> bytes:
    """One output line. Its newline is its last byte, so that a line cut short does not look whole."""
    line = OutputLine(line_id(number), custom_id, Response(status, request_id, body))
    return msgspec.json.encode(line) + b"\n"


def _plain(raw: msgspec.Raw | None) -> Any:
    """The value of a field of the envelope, or None if it is absent or nested too deeply to be one."""
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
