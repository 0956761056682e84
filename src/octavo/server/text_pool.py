"""Tokenizing and rendering beside the event loop, so that a prompt of 10 MB delays no other stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class TextPool:
    """Threads for work on text. Tokenizers leave the interpreter's lock while they work; templates have a process.

    The threads start when they are first needed, also after `close`: an application may be started again.
    """

    def __init__(self, threads: int) -> None:
        self._count = threads
        self._threads: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` returns, computed in a thread; its errors are raised here."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="octavo-text")
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """What runs comes to its end; what waits is cancelled."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
