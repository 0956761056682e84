"""``RemoteEngine``: the `EngineClient` of an engine in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

from octavo.client.calls import Calls
from octavo.client.connection import Connection
from octavo.client.process import EngineProcess
from octavo.client.ready import wait_ready
from octavo.client.stream import Stream
from octavo.client.streams import Streams
from octavo.client.verbs import AdapterInfo, BusyError, EngineDeadError, EngineInfo, Load
from octavo.client.wire import (
    Abort,
    Call,
    Generate,
    Hello,
    Limits,
    News,
    Stop,
    decode_from_engine,
    encode,
    encode_request,
)
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.outputs import RequestOutput
from octavo.sampling_params import PoolingParams, SamplingParams

ABORT_SECONDS = 2.0
"""How long aborted requests may take to end when the engine is shut down: a step, and the way back."""

STOP_SECONDS = 5.0
"""How long the process may take to end by itself when it was asked to."""

ENDING = "the server is ending and takes no more requests"


class RemoteEngine:
    """An engine in a process of its own; `octavo.client.verbs.EngineClient` says what the verbs do.

    Made by `start`, in the event loop that uses it. When the engine dies, every iterator and every call raises
    ``EngineDeadError``.

    Attributes:
        info: of the engine.
        pid: of its process.
    """

    def __init__(self, process: EngineProcess, connection: Connection, info: EngineInfo) -> None:
        self.info = info
        self.pid = process.pid
        self._process = process
        self._connection = connection
        self._keys = itertools.count()
        self._streams = Streams()
        self._calls = Calls()
        self._adapters: dict[str, AdapterInfo] = {}
        self._load = Load(at=time.monotonic())
        self._closing = False
        self._dead: str | None = None
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._pump())]

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        limits: Limits | None = None,
        on_phase: Callable[[str], None] = lambda name: None,
    ) -> RemoteEngine:
        """Start the process and wait until it takes requests.

        Args:
            on_phase: is given the name of each part of the start when it is done.

        Raises:
            OctavoError: as loading the model in this process would have raised it.
            EngineDeadError: the process died of something else.
        """
        process = await asyncio.to_thread(EngineProcess, config, limits or Limits())
        connection = Connection(process.folder)
        connection.send(encode(Hello()))
        death = asyncio.create_task(process.died())
        try:
            info = await wait_ready(process, connection, death, on_phase)
        except BaseException:
            await _cancel([death])
            connection.close()
            process.end()
            raise
        process.remove_folder()  # both sides hold their sockets: whatever becomes of them, no file is left behind
        engine = cls(process, connection, info)
        engine._tasks.append(asyncio.create_task(engine._watch(death)))
        return engine

    # ---------------------------------------------------------------- requests

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        lora: str | None = None,
        share_key: str = "",
        timeout: float | None = None,
        add_special_tokens: bool = True,
    ) -> AsyncGenerator[RequestOutput, None]:
        """See `EngineClient.generate`. Nothing is sent before the first output is asked for."""
        request = Generate(
            key=next(self._keys),
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else list(prompt),
            params=params,
            priority=priority,
            cache_salt=cache_salt,
            lora=lora,
            share_key=share_key,
            deadline=_deadline(timeout),
            add_special_tokens=add_special_tokens,
        )
        stream = self._open(request)
        try:
            finished = False
            while not finished:
                output = await stream.next()
                finished = output.finished
                yield output
        finally:
            self._leave(stream)

    async def embed(
        self,
        prompt: str | Sequence[int],
        *,
        request_id: str,
        priority: int = 0,
        lora: str | None = None,
        share_key: str = "",
        timeout: float | None = None,
    ) -> RequestOutput:
        """See `EngineClient.embed`."""
        stream = self._open(
            Generate(
                key=next(self._keys),
                request_id=request_id,
                prompt=prompt if isinstance(prompt, str) else list(prompt),
                params=PoolingParams(),
                priority=priority,
                lora=lora,
                share_key=share_key,
                deadline=_deadline(timeout),
                embed=True,
            )
        )
        try:
            output = await stream.next()
            while not output.finished:
                output = await stream.next()
            return output
        finally:
            self._leave(stream)

    async def abort(self, request_id: str) -> bool:
        key = self._streams.key_of(request_id)
        if key is None or self._dead is not None:
            return False
        self._connection.send(encode(Abort(key)))
        return True

    def _open(self, request: Generate) -> Stream:
        """Send a request and expect its news."""
        self._check_alive()
        if self._closing:
            raise BusyError(ENDING, retry_after=ABORT_SECONDS)
        if self._streams.key_of(request.request_id) is not None:
            raise RequestError(
                f"there is an unfinished request {request.request_id!r} already; each needs an id of its own"
            )
        self._connection.send(encode_request(request))
        stream = Stream(request.key, request.request_id, request.prompt, time.monotonic())
        self._streams.add(stream)
        return stream

    def _leave(self, stream: Stream) -> None:
        """Nobody reads a stream any more: if it goes on, end it."""
        if not stream.over:
            self._streams.forget(stream)
            self._connection.send(encode(Abort(stream.key)))

    # ---------------------------------------------------------------- the other verbs

    def load(self) -> Load:
        return self._load

    async def wait_failed(self) -> str:
        """See `EngineClient.wait_failed`. That the engine was shut down is no failure: it then waits for ever."""
        return await asyncio.shield(self._failed)

    async def add_lora(self, name: str, path: str) -> AdapterInfo:
        adapter = msgspec.convert(await self._call("add_lora", name, path), AdapterInfo)
        self._adapters[name] = adapter
        return adapter

    async def remove_lora(self, name: str) -> None:
        await self._call("remove_lora", name)
        self._adapters.pop(name, None)

    def loras(self) -> Sequence[AdapterInfo]:
        return list(self._adapters.values())

    async def reset_prefix_cache(self) -> None:
        await self._call("reset_prefix_cache")

    async def debug_check(self) -> dict[str, Any]:
        counts: dict[str, Any] = await self._call("debug_check")
        return counts

    async def _call(self, verb: str, *arguments: str) -> Any:
        self._check_alive()
        key = next(self._keys)
        self._connection.send(encode(Call(key, verb, arguments)))
        return await self._calls.answer(key)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(self._dead)

    # ---------------------------------------------------------------- the end

    def drain(self) -> None:
        """Take no more requests from now on."""
        self._closing = True

    async def shutdown(self, drain: float) -> None:
        """See `EngineClient.shutdown`. Safe to call twice."""
        self.drain()
        if self._dead is None:
            await self._streams.until_empty(drain)
            for key in self._streams.keys:
                self._connection.send(encode(Abort(key)))
            await self._streams.until_empty(ABORT_SECONDS)
        await self._end()

    async def _end(self) -> None:
        """End the process and let go of everything."""
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        await _cancel(tasks)
        if self._dead is None:
            self._connection.send(encode(Stop()))
            await asyncio.to_thread(self._process.wait, STOP_SECONDS)
            self._die("the engine was shut down")
        self._connection.close()
        self._process.end()

    def _die(self, reason: str) -> None:
        """From now on nothing comes any more. The first reason is the one that counts."""
        if self._dead is None:
            self._dead = reason
            self._streams.fail(reason)
            self._calls.fail(reason)

    async def _watch(self, death: asyncio.Task[str]) -> None:
        self._die(f"the engine has died: {await death}")
        assert self._dead is not None
        self._failed.set_result(self._dead)

    # ---------------------------------------------------------------- news

    async def _pump(self) -> None:
        try:
            while True:
                message = decode_from_engine(await self._connection.receive())
                if isinstance(message, News):
                    self._take(message)
        except Exception as error:  # nobody shall wait for news that can no longer be read
            self._die(f"the engine's news cannot be read: {error}")
            self._process.kill()
            raise

    def _take(self, news: News) -> None:
        self._streams.take(news)
        self._calls.take(news.answers)
        if news.load is not None and news.load.at >= self._load.at:
            self._load = news.load


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End tasks, and wait until they have let go of what they used."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
