"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

import re

import msgspec

from octavo.errors import RequestError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class FieldError(RequestError):
    """A request body cannot be served because of one field, ``param`` (None: because of the whole)."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ErrorInfo(msgspec.Struct):
    """What went wrong. ``param`` names the field that is to blame, if one is; ``code`` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    """The body of an answer with an error status."""

    error: ErrorInfo


def refusal(error: RequestError, fields: tuple[str, ...] = ()) -> ErrorBody:
    """The body for a request that is at fault. ``fields`` are those of its body, for errors that begin with one."""
    if isinstance(error, FieldError):
        return ErrorBody(ErrorInfo(str(error), INVALID_REQUEST, error.param, error.code))
    word = re.match(r"\w*", str(error))
    param = word[0] if word and word[0] in fields else None
    return ErrorBody(ErrorInfo(str(error), INVALID_REQUEST, param))


def failure(message: str) -> ErrorBody:
    """The body for a request that was fine, but could not be finished."""
    return ErrorBody(ErrorInfo(message, SERVER_ERROR))
