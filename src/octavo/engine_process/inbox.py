"""What comes in, read by a thread of its own: while a step runs, messages are decoded and texts become tokens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from octavo.client.wire import Abort, Call, Generate, Hello, Refused, Stop, decode_to_engine, key_of
from octavo.engine_process.adapter_reader import AdapterRead
from octavo.errors import RequestError


class Arrived(msgspec.Struct, frozen=True):
    """A request whose prompt has been tokenized; ``was_text``: here, and not by whoever sent it."""

    message: Generate
    token_ids: list[int]
    was_text: bool


Item = Arrived | Abort | Call | Stop | Refused | AdapterRead


class Inbox:
    """Reads messages until the socket's context is ended. A context manager, which lets go of the socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:  # else it is the thread's to close, which no other thread may do
            self._socket.close()

    def start(self, tokenize: Callable[[Any, bool], list[int]]) -> None:
        """Wait for the first message, the greeting, and then read in a thread.

        Args:
            tokenize: token ids of a prompt, given whether special tokens are added; ``RequestError`` if it has none.
                Called by the thread, while another one steps the engine.
        """
        self._socket.recv()
        self._tokenize = tokenize
        self._thread = threading.Thread(target=self._read, name="octavo-inbox", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Have something taken that comes from within this process. Any thread may call it."""
        self._items.put(item)

    def take(self, *, wait: bool) -> list[Item]:
        """All that has come since the last call, in order; ``wait`` until there is something."""
        items: list[Item] = []
        try:
            if wait:
                items.append(self._items.get())
            while True:
                items.append(self._items.get_nowait())
        except queue.Empty:
            return items

    def _read(self) -> None:
        with self._socket:
            while True:
                try:
                    data = self._socket.recv()
                except zmq.ContextTerminated:
                    return
                item = self._item(data)
                if item is not None:
                    self._items.put(item)

    def _item(self, data: bytes) -> Item | None:
        """What a message is to the engine. One that makes no sense is refused, so that nobody waits for an answer."""
        try:
            message = decode_to_engine(data)
        except (msgspec.DecodeError, ValueError) as error:
            key = key_of(data)
            return None if key is None else Refused(key, f"the engine cannot read this request: {error}")
        if isinstance(message, Generate):
            return self._arrived(message)
        return None if isinstance(message, Hello) else message

    def _arrived(self, message: Generate) -> Item:
        try:
            token_ids = self._tokenize(message.prompt, message.add_special_tokens)
        except RequestError as error:
            return Refused(message.key, str(error))
        except BaseException as error:  # a tokenizer's own panic is no Exception; this thread must outlive it
            why = f"the prompt cannot be tokenized: {type(error).__name__}: {error}"
            return Refused(message.key, why, kind="failure")
        return Arrived(message, token_ids, isinstance(message.prompt, str))
