"""Errors as Anthropic's clients expect them."""

from __future__ import annotations

import msgspec

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicErrorInfo(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct, kw_only=True):
    """The body of an answer with an error status, and of an ``error`` event."""

    type: str = "error"
    error: AnthropicErrorInfo


def anthropic_error(status: int, message: str) -> AnthropicError:
    """The error that belongs to an HTTP status."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return AnthropicError(error=AnthropicErrorInfo(kind, message))
