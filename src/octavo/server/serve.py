"""The life of ``octavo serve``: an engine's process, HTTP before it, and how both end.

A first SIGINT or SIGTERM lets requests finish for a while, a second one does not. When the engine dies, requests are
answered with the reason, ``/health`` fails for a moment so that it is seen, and this process ends with an error, so
that a supervisor starts it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from octavo.client.remote import RemoteEngine
from octavo.client.verbs import EngineDeadError, EngineInfo
from octavo.client.wire import Limits
from octavo.config import EngineConfig
from octavo.errors import OctavoError
from octavo.server.app import create_app
from octavo.server.options import ServerOptions
from octavo.server.tls import time_trouble
from octavo.text.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

LENGTHS = (2048, 8192)
"""Of requests, in tokens, for which it is told how many fit; beside those of full length."""

BACKLOG = 2048
"""Connections that may wait for the server to take them."""

KEEP_ALIVE = 75
"""Seconds that a connection may be idle. More than proxies and clients keep theirs (nginx and others 60): whoever
closes first should be the one that sends, or a request is lost now and then."""

LOOK_EVERY = 0.05
"""Seconds between two looks at whether the last request has ended."""

FAILED_SECONDS = 1.0
"""How long a server without an engine goes on to say so."""

FORCE_SECONDS = 2.0
"""How long it waits, then, for readers to take what they are told."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What is to be served, and how.

    Attributes:
        limits: of the engine's queue.
        uvicorn: arguments of ``uvicorn.Config``.
        loras: names and folders of LoRA adapters to begin with.
        drain: seconds that requests have to finish in when the server is told to end.
    """

    config: EngineConfig
    limits: Limits
    options: ServerOptions
    uvicorn: dict[str, Any]
    loras: Sequence[tuple[str, str]]
    drain: float


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at the port. Who comes before the model is loaded waits.

    It listens at once, because two sockets may be bound to one port as long as neither does: a port that is taken is
    told before the model is loaded, not after. Raises ``OctavoError``.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OctavoError(
            f"cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}"
        ) from None
    return listener


async def serve(serving: Serving, listener: socket.socket, say: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        say: is given lines for whoever has started this.

    Raises:
        OctavoError: the model cannot be loaded. EngineDeadError: the engine has died.
    """
    engine = await RemoteEngine.start(serving.config, serving.limits)
    try:
        for line in introduction(engine.info):
            say(line)
        for name, folder in serving.loras:
            await engine.add_lora(name, folder)
        path = engine.info.tokenizer_path
        tokenizer = await asyncio.to_thread(load_tokenizer, path) if path else None
        app = create_app(engine, serving.options, tokenizer)
        _warn_of_dates(serving.uvicorn)
        host, port, *_ = listener.getsockname()
        say(f"listening on {'https' if 'ssl_certfile' in serving.uvicorn else 'http'}://{_in_url(host)}:{port}")
        await _answer(app, engine, serving, listener)
    finally:
        await engine.shutdown(0)


def _warn_of_dates(options: dict[str, Any]) -> None:
    if "ssl_certfile" in options and (trouble := time_trouble(options["ssl_certfile"], options["ssl_keyfile"])):
        log.warning(trouble)


def introduction(info: EngineInfo) -> list[str]:
    """What is served, where the memory goes, and how much fits."""
    return [f"{info.model} on {info.device}, {info.dtype}", *info.ledger, capacity(info), step_size(info)]


def step_size(info: EngineInfo) -> str:
    """How much of long prompts is computed at once, while running requests wait for their next token."""
    return (
        f"steps of up to {info.max_num_batched_tokens:,} tokens; --max-num-batched-tokens: fewer for steadier streams, "
        "more for prompts that are read sooner"
    )


def capacity(info: EngineInfo) -> str:
    """How many requests the KV cache holds at once, by their length."""
    lengths = sorted({*(n for n in LENGTHS if n < info.token_limit), info.token_limit})
    counts = [(info.num_blocks // -(-length // info.block_size), length) for length in lengths]
    (first, length), *others = counts
    fits = "".join(f", {count:,} of {length:,}" for count, length in others)
    return f"{first:,} requests of {length:,} tokens fit{fits}; at most {info.max_num_seqs:,} run at once"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _answer(app: FastAPI, engine: RemoteEngine, serving: Serving, listener: socket.socket) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        **serving.uvicorn,
    )
    server = _Server(config)
    failing = asyncio.create_task(_end_with(engine, server))
    try:
        with _signals(lambda: _end(server, app, serving.drain)):
            await server.serve(sockets=[listener])
    finally:
        failing.cancel()
    if not failing.cancelled() and failing.done():
        raise EngineDeadError(failing.result())


class _Server(uvicorn.Server):
    """uvicorn without its own ways with signals, which end in one that ends the process.

    And it listens while it drains: who still comes is told to go elsewhere, and ``/ready`` says why.
    """

    _draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the application end in any case: where uvicorn is forced to end it does not, and it ends by an error."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def drain(self, seconds: float) -> None:
        """End when no request is at work, or so much later."""
        self._draining = asyncio.create_task(self._drain(time.monotonic() + seconds))

    async def _drain(self, end: float) -> None:
        while self.server_state.tasks and time.monotonic() < end:
            await asyncio.sleep(LOOK_EVERY)
        left = max(end - time.monotonic(), 0.0)  # for readers of what has been answered
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # it goes to asyncio.wait_for
        self.should_exit = True


@contextlib.contextmanager
def _signals(on_signal: Callable[[], None]) -> Iterator[None]:
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _end(server: _Server, app: FastAPI, drain: float) -> None:
    """The first time: no new requests. The second time: now."""
    health = app.state.operation.health
    if health.draining:
        server.should_exit = server.force_exit = True
    else:
        health.draining = True
        server.drain(drain)


async def _end_with(engine: RemoteEngine, server: uvicorn.Server) -> str:
    """End the server when the engine dies; why it did."""
    reason = await engine.wait_failed()
    log.error(reason)
    await asyncio.sleep(FAILED_SECONDS)
    server.should_exit = True
    asyncio.get_running_loop().call_later(FORCE_SECONDS, setattr, server, "force_exit", True)
    return reason
