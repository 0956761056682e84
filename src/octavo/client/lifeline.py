"""How two processes notice each other's end: a pair of sockets, of which each holds one.

When a process ends, however that happens, the system closes its socket, and the other one reads the end of the file at
once. Nothing is polled, and nothing is left to signals, which a thread that ends can set off. The engine also writes
its last words there, if it can still speak.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable

import msgspec

from octavo import errors
from octavo.errors import OctavoError

MAX_LAST_WORDS = 16 << 10
"""Bytes; fewer than a socket holds, so that whoever writes them never waits."""


class LastWords(msgspec.Struct, frozen=True):
    """Why a process ended. ``kind`` is the name of an error of `octavo.errors`, or empty for any other failure."""

    message: str
    kind: str = ""

    def as_error(self) -> OctavoError | None:
        """The error that they are about, if it is one of Octavo's own."""
        kind = getattr(errors, self.kind, None) if self.kind else None
        return kind(self.message) if isinstance(kind, type) and issubclass(kind, OctavoError) else None


def make_lifeline() -> tuple[socket.socket, socket.socket]:
    """The parent's end, which does not block, and the child's, which is to be handed over."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


def read_last_words(ours: socket.socket) -> LastWords | None:
    """What the other side has said, once it has ended; None if it said nothing, or did not come to an end of it."""
    data = b""
    with contextlib.suppress(OSError):
        while part := ours.recv(MAX_LAST_WORDS):
            data += part
    try:
        return msgspec.msgpack.decode(data, type=LastWords)
    except msgspec.DecodeError:
        return None


class ChildEnd:
    """The child's end of a lifeline: ends this process when the parent has gone.

    Args:
        fd: the socket, as it was inherited.
        on_orphaned: called before the process ends; must be quick.
    """

    def __init__(self, fd: int, on_orphaned: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)  # a child of this process must not keep it open
        self._on_orphaned = on_orphaned
        threading.Thread(target=self._watch, name="octavo-lifeline", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(1):
                pass
        try:
            self._on_orphaned()
        finally:
            os._exit(1)  # nobody is left who would wait for anything

    def say(self, words: LastWords) -> None:
        """Tell the parent why this process is about to end."""
        short = msgspec.structs.replace(words, message=words.message[: MAX_LAST_WORDS // 8])
        with contextlib.suppress(OSError):
            self._socket.sendall(msgspec.msgpack.encode(short))
