"""``/v1/models`` and ``/version``: who is here."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.server.body import answer
from octavo.server.state import Server, server_of
from octavo.version import __version__

router = APIRouter()


class ModelCard(msgspec.Struct):
    """A model that requests may name. ``root``, ``parent`` and ``max_model_len`` are vLLM's additions."""

    id: str
    created: int
    root: str
    max_model_len: int
    parent: str | None = None
    object: str = "model"
    owned_by: str = "octavo"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


class Version(msgspec.Struct):
    version: str


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    return answer(ModelList(_cards(server_of(request))))


@router.get("/v1/models/{model:path}")
async def get_model(request: Request) -> Response:
    server = server_of(request)
    name = server.names.find(request.path_params["model"]).name
    return answer(next(card for card in _cards(server) if card.id == name))


@router.get("/version")
async def get_version() -> Response:
    return answer(Version(__version__))


def _cards(server: Server) -> list[ModelCard]:
    info, own = server.client.info, server.names.own
    cards = [ModelCard(name, server.started, info.model, info.token_limit) for name in own]
    return cards + [
        ModelCard(adapter.name, server.started, adapter.path, info.token_limit, own[0])
        for adapter in server.client.loras()
    ]
