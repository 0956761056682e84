"""The sockets between the two processes, on this side."""

from __future__ import annotations

from pathlib import Path

import zmq
import zmq.asyncio

RECONNECT_MS = 20
"""How often it is tried to reach the engine's sockets while its process starts."""

UNREAD_MESSAGES = 1000
"""Messages that may lie unread here before the engine waits."""


class Connection:
    """ZeroMQ sockets in a folder that the engine's process opens them in; to be used from one event loop."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.asyncio.Context()
        self._incoming = self._context.socket(zmq.PULL)
        self._incoming.set_hwm(UNREAD_MESSAGES)
        # Sending never waits, as any number of messages may be queued: a future for each would be of no use.
        self._outgoing = zmq.Context(self._context).socket(zmq.PUSH)
        self._outgoing.set_hwm(0)
        self._connect(self._incoming, folder, "news")
        self._connect(self._outgoing, folder, "requests")

    def _connect(self, socket: zmq.Socket[bytes] | zmq.asyncio.Socket, folder: Path, name: str) -> None:
        socket.linger = 0
        socket.reconnect_ivl = RECONNECT_MS
        socket.connect(f"ipc://{folder}/{name}")

    def send(self, data: bytes) -> None:
        self._outgoing.send(data, zmq.NOBLOCK)

    async def receive(self) -> bytes:
        return await self._incoming.recv()

    def close(self) -> None:
        self._outgoing.close()
        self._context.destroy(linger=0)
