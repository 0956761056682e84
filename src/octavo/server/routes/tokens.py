"""``/tokenize``, ``/detokenize`` and ``/apply-template``: what a prompt becomes before the model reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.openai.decode import Fields
from octavo.openai.errors import FieldError
from octavo.openai.requests import template_options
from octavo.openai.schema import ChatCompletionRequest
from octavo.server.asking import deadline_of
from octavo.server.body import answer, read_body
from octavo.server.prompts import check_ids, check_template, render
from octavo.server.state import Server, server_of

router = APIRouter()


class TemplateRequest(Fields, kw_only=True):
    """A chat to render: the fields of ``/v1/chat/completions`` that the template sees."""

    messages: list[dict[str, Any]] | None = None
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeRequest(TemplateRequest, kw_only=True):
    """A ``prompt``, or ``messages`` for a chat. A prompt gets the special tokens that the model wants, a chat none."""

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"mm_processor_kwargs": ({},)}

    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Tokenized(msgspec.Struct):
    """``token_strs`` are as the vocabulary spells them."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None = None


class DetokenizeRequest(Fields, kw_only=True):
    tokens: list[int]
    model: str | None = None


class Prompt(msgspec.Struct):
    prompt: str


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, TokenizeRequest)
    server.names.find(body.model)
    return answer(await server.texts.run_for(request.receive, deadline_of(request), _tokenize, server, body))


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, DetokenizeRequest)
    server.names.find(body.model)
    return answer(await server.texts.run_for(request.receive, deadline_of(request), _detokenize, server, body))


@router.post("/apply-template")
async def apply_template(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, TemplateRequest)
    server.names.find(body.model)
    text = await server.texts.run_for(request.receive, deadline_of(request), _render, server, body)
    return answer(Prompt(text))


def _tokenize(server: Server, body: TokenizeRequest) -> Tokenized:
    tokenizer = server.need_tokenizer()
    if (body.prompt is None) == (body.messages is None):
        raise FieldError("accepted: either prompt or messages", "prompt")
    text = body.prompt if body.prompt is not None else _render(server, body)
    special = body.prompt is not None if body.add_special_tokens is None else body.add_special_tokens
    ids = tokenizer.encode(text, add_special_tokens=special)
    names = [tokenizer.id_to_token(i) for i in ids] if body.return_token_strs else None
    return Tokenized(len(ids), server.client.info.token_limit, ids, names)


def _detokenize(server: Server, body: DetokenizeRequest) -> Prompt:
    ids = check_ids(server, body.tokens) if body.tokens else []
    return Prompt(server.need_tokenizer().decode(ids, skip_special_tokens=False))


def _render(server: Server, body: TemplateRequest) -> str:
    if body.messages is None:
        raise FieldError("messages is missing", "messages")
    names = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
    chat = ChatCompletionRequest(messages=body.messages, **{name: getattr(body, name) for name in names})
    return render(server, body.messages, check_template(server, body.chat_template), **template_options(chat))
