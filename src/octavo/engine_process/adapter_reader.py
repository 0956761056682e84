"""Reads LoRA adapters in a thread of its own, so that no step waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from octavo.execution.adapters import HostAdapter


class AdapterRead(NamedTuple):
    """An adapter has been read from ``path``, or could not be: ``read`` is done. ``key`` is that of the call."""

    key: int
    name: str
    path: str
    read: Future[HostAdapter]


class AdapterReader:
    """Reads one after the other, so that no more than one is in memory that nobody has a place for yet.

    Args:
        read: reads an adapter.
        done: gets each one that was read. Called in the reader's thread.
    """

    def __init__(self, read: Callable[[str], HostAdapter], done: Callable[[AdapterRead], None]) -> None:
        self._read, self._done = read, done
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-adapters")

    def start(self, key: int, name: str, path: str) -> None:
        """Begin to read; does not wait."""
        reading = self._thread.submit(self._read, path)
        reading.add_done_callback(lambda read: self._done(AdapterRead(key, name, path, read)))

    def stop(self) -> None:
        """Let go of the thread; what has not begun is never told."""
        self._thread.shutdown(wait=False, cancel_futures=True)
