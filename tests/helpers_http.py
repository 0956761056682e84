"""Applications over a `FakeClient` and a small tokenizer, and ways to talk to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from helpers_client import FakeClient
from helpers_live import live
from helpers_text import byte_level_bpe
from octavo.server.app import create_app
from octavo.server.options import ServerOptions
from octavo.text.hf_tokenizer import HFTokenizer
from octavo.text.tokenizer_config import TokenizerConfig

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache
def tokenizer() -> HFTokenizer:
    config = TokenizerConfig(bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE, added_tokens={})
    return HFTokenizer(byte_level_bpe(), config)


def make(client: FakeClient | None = None, **options: Any) -> tuple[FastAPI, FakeClient]:
    """An application, and the engine behind it."""
    client = client or FakeClient(tokenizer())
    options.setdefault("keep_alive", 5.0)
    return create_app(client, ServerOptions(**options), tokenizer()), client


def asgi(app: ASGIApp) -> httpx.AsyncClient:
    """A client that calls the application in this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30)


def call(app: ASGIApp, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
    """One request, from start to end."""

    async def go() -> httpx.Response:
        async with asgi(app) as client:
            return await client.request(method, path, **({} if body is None else {"json": body}), **options)

    return asyncio.run(go())


def post(app: ASGIApp, path: str, body: Any) -> Any:
    """The JSON of an answer that must be a good one."""
    response = call(app, "POST", path, body)
    assert response.status_code == 200, response.text
    return response.json()


def events_of(response: httpx.Response) -> list[Any]:
    """The JSON of a stream's events; "[DONE]" as it is."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@contextmanager
def live_url(app: FastAPI) -> Iterator[str]:
    """The address of the application on a port of its own."""
    with live(app, lifespan="on", timeout_graceful_shutdown=1) as port:
        yield f"http://127.0.0.1:{port}"
