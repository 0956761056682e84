"""Clients that drip, stall, or send too much, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from helpers_live import live
from octavo.server.body_limit import BodyLimit
from octavo.server.patient_http import patient_http

SHORT = 0.4
LONGER = 1.0
"""Where a machine that is slow at the wrong moment must not be taken for a slow client."""
LINE = b"data: " + b"x" * 4000 + b"\n\n"


class Watched:
    """An application that streams for ever, and counts what it has made and whether it was told to stop."""

    def __init__(self) -> None:
        self.sent = 0
        self.stopped = threading.Event()
        self.app = FastAPI()

        @self.app.post("/echo")
        async def echo(request: Request) -> dict[str, int]:
            return {"size": len(await request.body())}

        @self.app.get("/stream")
        async def stream() -> StreamingResponse:
            return StreamingResponse(self._lines(), media_type="text/event-stream")

    async def _lines(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.sent += len(LINE)
                yield LINE
                await asyncio.sleep(0)
        finally:
            self.stopped.set()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(20)
    return connection


def ended(connection: socket.socket) -> bytes:
    """All that comes until the other side ends the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_reader_that_stops_is_cut_off_and_costs_no_memory(loop: str) -> None:
    watched = Watched()
    with live(watched.app, http=patient_http(60, SHORT), loop=loop) as port, connect(port) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        assert watched.stopped.wait(20)
        assert watched.sent < 32 << 20  # the kernel's buffers, and no more


HEADS = {
    "many headers": (b"GET /stream HTTP/1.1\r\nHost: a\r\n", b"x-more: " + b"x" * 1000 + b"\r\n"),
    "one header": (b"GET /stream HTTP/1.1\r\nx-more: ", b"x" * 1000),
    "a long line": (b"GET /", b"x" * 1000),
    "trailers": (
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        b"x-more: " + b"x" * 1000 + b"\r\n",
    ),
}


@pytest.mark.parametrize(("begin", "more"), HEADS.values(), ids=HEADS)
def test_a_head_without_end_is_cut_off(begin: bytes, more: bytes) -> None:
    watched = Watched()
    with live(watched.app, http=patient_http(60, 60)) as port, connect(port) as client:
        client.sendall(begin)
        with pytest.raises(OSError):  # a broken pipe, or a reset
            client.sendall(more * 20_000)


def test_a_body_in_many_chunks_has_no_head() -> None:
    watched = Watched()
    with live(watched.app, http=patient_http(60, 60)) as port, connect(port) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for _ in range(100):
            client.sendall(b"1\r\nx\r\n" * 1000)
        client.sendall(b"0\r\n\r\n")
        assert b'{"size":100000}' in ended(client)


def test_a_reader_that_reads_is_left_alone() -> None:
    watched = Watched()
    with live(watched.app, http=patient_http(LONGER, LONGER)) as port, connect(port) as reader:
        reader.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        end, read = time.monotonic() + 2 * LONGER, 0
        while time.monotonic() < end:
            read += len(reader.recv(65536))
            time.sleep(0.001)
        assert read > 100_000
        assert not watched.stopped.is_set()


@pytest.mark.parametrize(
    "start", [b"", b"POST /echo HT", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"]
)
def test_a_request_that_does_not_come_is_not_waited_for(start: bytes) -> None:
    with live(Watched().app, http=patient_http(SHORT, 60)) as port, connect(port) as slow:
        slow.sendall(start)
        assert ended(slow) == b""


def test_the_time_is_for_the_whole_request_however_it_drips() -> None:
    with live(Watched().app, http=patient_http(SHORT, 60)) as port, connect(port) as slow:
        slow.sendall(b"GET /stream HTTP/1.1\r\nX-Long: ")
        with pytest.raises(OSError):
            drip(slow)


def drip(connection: socket.socket) -> None:
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.05)


def test_an_open_connection_may_ask_again() -> None:
    """The timer of one request is not the next one's."""
    request = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    with live(Watched().app, http=patient_http(LONGER, LONGER)) as port, connect(port) as client:
        for _ in range(3):
            client.sendall(request)
            assert client.recv(65536).endswith(b'{"size":3}')
            time.sleep(0.6 * LONGER)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_has_come(chunked: bool) -> None:
    watched = Watched()
    app: Any = BodyLimit(watched.app, 1 << 20)
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
    length = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 52428800\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n" if chunked else b"x" * 65536
    with live(app) as port, connect(port) as client:
        sent = 0
        try:
            client.sendall(head + length)
            for _ in range(800):
                client.sendall(chunk)
                sent += len(chunk)
        except (ConnectionResetError, BrokenPipeError):
            pass
        answer = ended(client)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 40 << 20
