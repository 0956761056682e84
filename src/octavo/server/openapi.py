"""The OpenAPI description, made of the very structs that bodies are read into and answers are written from."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.anthropic.answers import AnthropicMessage, TokenCount
from octavo.anthropic.errors import AnthropicError
from octavo.anthropic.schema import CountTokensRequest, MessagesRequest
from octavo.openai.embeddings import EmbeddingList, EmbeddingRequest
from octavo.openai.errors import ErrorBody
from octavo.openai.response_object import ResponseObject
from octavo.openai.response_request import ResponsesRequest
from octavo.openai.responses import ChatCompletion, Completion
from octavo.openai.schema import ChatCompletionRequest, CompletionRequest
from octavo.server.routes.control import (
    Aborted,
    AbortRequest,
    Adapter,
    LoadAdapterRequest,
    UnloadAdapterRequest,
)
from octavo.server.routes.models import ModelCard, ModelList, Version
from octavo.server.routes.tokens import (
    DetokenizeRequest,
    Prompt,
    TemplateRequest,
    Tokenized,
    TokenizeRequest,
)
from octavo.version import __version__

POSTS: dict[str, tuple[type, type]] = {
    "/v1/chat/completions": (ChatCompletionRequest, ChatCompletion),
    "/v1/completions": (CompletionRequest, Completion),
    "/v1/responses": (ResponsesRequest, ResponseObject),
    "/v1/embeddings": (EmbeddingRequest, EmbeddingList),
    "/v1/messages": (MessagesRequest, AnthropicMessage),
    "/v1/messages/count_tokens": (CountTokensRequest, TokenCount),
    "/tokenize": (TokenizeRequest, Tokenized),
    "/detokenize": (DetokenizeRequest, Prompt),
    "/apply-template": (TemplateRequest, Prompt),
    "/v1/abort": (AbortRequest, Aborted),
    "/v1/load_lora_adapter": (LoadAdapterRequest, Adapter),
    "/v1/unload_lora_adapter": (UnloadAdapterRequest, Adapter),
}
"""Path -> what is read, and what is answered."""

GETS: dict[str, type] = {"/v1/models": ModelList, "/v1/models/{model}": ModelCard, "/version": Version}

STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})

_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
"""An event of a stream, whose data are JSON or ``[DONE]``."""

_ERRORS = {
    "400": "the request is at fault, and the message says how",
    "401": "no API key, or an unknown one",
    "403": "not allowed here",
    "404": "no such model or request",
    "413": "the body is too large",
    "415": "the body is no JSON",
    "429": "the queue is full; Retry-After says when to come again",
    "500": "the model or the server failed",
    "503": "there is no engine, or the server is about to end",
    "504": "the request's own time was over before there was an answer",
}


def describe() -> dict[str, Any]:
    """The description as plain values."""
    kinds = [*(kind for pair in POSTS.values() for kind in pair), *GETS.values(), ErrorBody, AnthropicError]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {path: {"get": _get(path, kind)} for path, kind in GETS.items()}
    paths |= {path: {"post": _post(path, *pair)} for path, pair in POSTS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _get(path: str, kind: type) -> dict[str, Any]:
    operation: dict[str, Any] = {"responses": _responses(path, kind)}
    if "{" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _post(path: str, body: type, answer: type) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": _json(body)}, "responses": _responses(path, answer)}


def _responses(path: str, answer: type) -> dict[str, Any]:
    error = AnthropicError if path.startswith("/v1/messages") else ErrorBody
    good = {"text/event-stream": {"schema": _EVENT}} if path in STREAMED else {}
    answers = {"200": {"description": "the answer", "content": {**_json(answer), **good}}}
    return answers | {status: {"description": why, "content": _json(error)} for status, why in _ERRORS.items()}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
