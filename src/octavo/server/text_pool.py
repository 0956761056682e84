"""Tokenizing and rendering beside the event loop, so that a prompt of 10 MB delays no other stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from starlette.types import Receive

from octavo.server.errors import DeadlineError
from octavo.server.stream import unless_gone

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

    async def run_for(
        self, receive: Receive, deadline: float | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`run`, as long as somebody waits for it. Work that has not begun by then is dropped, other's result, too.

        Args:
            receive: of the request, whose body has been read.
            deadline: when it has waited long enough, in seconds of the monotonic clock.

        Raises:
            ClientGoneError: the client has left. DeadlineError: the deadline has passed. And what ``work`` raises.
        """
        left = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(left) as limit:
                return await unless_gone(receive, self.run(work, *args, **kwargs))
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineError("the time of the request has run out before it was read") from None

    def close(self) -> None:
        """What runs comes to its end; what waits is cancelled."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
