"""HTTP/1.1 that does not wait for ever: neither for a request that drips in, nor for a reader that has stopped.

Nor does it take in a head without end: bodies have their limit elsewhere, but the parser keeps all headers.

The server stops writing to a connection whose buffer is full (64 KiB), so a slow reader costs no memory; but without
a limit he holds his request's KV blocks as long as he likes. And nobody else limits how long a request may take to
arrive ("slow loris").
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10
"""Bytes of a request's line and headers, or of the trailers behind a chunked body."""


class PatientHttp(HttpToolsProtocol):
    """uvicorn's protocol with two timers for each connection, and a limit to heads.

    Attributes:
        receive_timeout: seconds from a request's first byte (of the first request: from connecting) to its last one.
        send_timeout: seconds that a full buffer may stay full.
    """

    receive_timeout: float = 60.0
    send_timeout: float = 60.0
    _receiving: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _head: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head = 0
        _cancel(self._receiving)
        super().on_message_complete()

    def pause_writing(self) -> None:
        self._sending = self.loop.call_later(self.send_timeout, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        _cancel(self._sending)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._receiving)
        _cancel(self._sending)
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        _cancel(self._receiving)
        self._receiving = self.loop.call_later(self.receive_timeout, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def patient_http(receive_timeout: float, send_timeout: float) -> type[PatientHttp]:
    """The class to give to uvicorn as ``http``."""
    limits: dict[str, Any] = {"receive_timeout": receive_timeout, "send_timeout": send_timeout}
    return type("LimitedHttp", (PatientHttp,), limits)
