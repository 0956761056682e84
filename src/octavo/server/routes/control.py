"""``/v1/abort``, and adapters that come and go."""

from __future__ import annotations

import logging
from pathlib import PurePath
from typing import ClassVar

import msgspec
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from octavo.errors import RequestError
from octavo.openai.decode import Fields
from octavo.openai.errors import FieldError
from octavo.server.body import answer, read_body
from octavo.server.caller import caller_of
from octavo.server.state import Server, server_of

router = APIRouter()

log = logging.getLogger(__name__)

MAX_NAME = 200


class AbortRequest(Fields, kw_only=True):
    """``request_id`` is the ``id`` of an answer, or the ``X-Request-Id`` that its request came with."""

    request_id: str


class Aborted(msgspec.Struct):
    request_id: str
    aborted: bool


class LoadAdapterRequest(Fields, kw_only=True):
    """``lora_path`` is a folder on the server's machine, in PEFT's format."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"lora_int_id"})

    lora_name: str
    lora_path: str


class UnloadAdapterRequest(Fields, kw_only=True):
    IGNORED: ClassVar[frozenset[str]] = frozenset({"lora_int_id"})

    lora_name: str


class Adapter(msgspec.Struct):
    id: str
    rank: int | None
    loaded: bool


@router.post("/v1/abort")
async def abort(request: Request) -> Response:
    """End a request of the same key: it answers with what it has, and the finish reason "abort"."""
    server = server_of(request)
    body = await read_body(request, AbortRequest)
    found = server.live.find(body.request_id, caller_of(request).name)
    if not found:
        raise HTTPException(404, f"there is no request {body.request_id!r:.200} at work")
    ended = [await server.client.abort(name) for running in found for name in running.engine_ids]
    return answer(Aborted(body.request_id, any(ended)))


@router.post("/v1/load_lora_adapter")
async def load_adapter(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, LoadAdapterRequest)
    _check_allowed(server)
    _check_name(server, body.lora_name)
    if not body.lora_path or "\0" in body.lora_path or not PurePath(body.lora_path).is_absolute():
        raise FieldError(f"lora_path={body.lora_path!r:.200}; accepted: an absolute path", "lora_path")
    info = await server.client.add_lora(body.lora_name, body.lora_path)
    _log(request, "adapter loaded", name=body.lora_name, path=body.lora_path)
    return answer(Adapter(info.name, info.rank, True))


@router.post("/v1/unload_lora_adapter")
async def unload_adapter(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, UnloadAdapterRequest)
    _check_allowed(server)
    _check_name(server, body.lora_name)
    await server.client.remove_lora(body.lora_name)
    _log(request, "adapter unloaded", name=body.lora_name)
    return answer(Adapter(body.lora_name, None, False))


def _log(request: Request, what: str, **fields: str) -> None:
    """Whoever changes what is served stands in the log."""
    caller = caller_of(request)
    known = {"request_id": caller.request_id, "key": caller.name, **fields}
    log.info(what, extra={"fields": {name: value for name, value in known.items() if value}})


def _check_allowed(server: Server) -> None:
    if server.client.info.max_loras == 0:
        raise RequestError("this server runs without adapters; accepted with --lora or --allow-lora-loading")
    if not server.options.allow_lora_loading:
        raise HTTPException(403, "requests may not load or unload adapters here; accepted with --allow-lora-loading")


def _check_name(server: Server, name: str) -> None:
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise FieldError(f"lora_name takes 1 to {MAX_NAME} printable characters", "lora_name")
    server.names.check_free(name)
