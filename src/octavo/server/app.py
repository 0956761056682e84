"""The application: joins the engine's client, the options and the tokenizer with the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from octavo.client.verbs import EngineClient
from octavo.server import openapi
from octavo.server.errors import install_error_handlers
from octavo.server.operation import install, make_operation, running
from octavo.server.options import ServerOptions
from octavo.server.routes import chat, completions, control, embeddings, messages, models, responses, tokens
from octavo.server.state import make_server
from octavo.text.tokenizer import Tokenizer
from octavo.version import __version__

ROUTERS = (
    models.router,
    completions.router,
    chat.router,
    responses.router,
    messages.router,
    embeddings.router,
    tokens.router,
    control.router,
)


def create_app(client: EngineClient, options: ServerOptions, tokenizer: Tokenizer | None) -> FastAPI:
    """The HTTP application over an engine. It ends neither the engine nor the process.

    Args:
        client: the engine to ask.
        options: how the server is to behave.
        tokenizer: the engine's tokenizer, to run beside the event loop; None for a model that came without one.

    Raises:
        UsageError: the file of API keys is wrong, or traces are wanted and cannot be sent.
    """
    operation = make_operation(client, options, tokenizer)
    server = make_server(operation.client, options, tokenizer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(operation):
            yield
        server.texts.close()
        server.forms.close()

    app = FastAPI(title="Octavo", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server, app.state.operation = server, operation
    app.openapi = openapi.describe  # type: ignore[method-assign]
    install_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    install(app, operation, options)
    return app
