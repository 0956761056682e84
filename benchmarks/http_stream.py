"""How many tokens a second the HTTP process can stream, without an engine: a client in the process emits them.

The server runs in a process of its own and reads nothing over a wire but HTTP; another process reads all streams
and drops what it reads. What is printed is what left the server.

    python benchmarks/http_stream.py --streams 256 --tokens 400 --rate 90
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
import uvloop

from octavo.client.verbs import AdapterInfo, EngineInfo, Load
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.app import create_app
from octavo.server.options import ServerOptions


class Emitter:
    """As much of an ``EngineClient`` as a completion needs; it emits to all streams once a step."""

    info = EngineInfo("m", "m", "1", 1000, 100_000, 512, 8192, 1, 16, "float32", "cpu")

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._step = asyncio.Condition()
        self._ticker: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []

    async def _tick(self) -> None:
        """Wake all streams, once a step; late steps follow each other without a pause."""
        due = time.monotonic()
        while True:
            due = max(due + self._gap, time.monotonic() - 0.1)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def generate(
        self, prompt: Sequence[int], params: SamplingParams, *, request_id: str, **_: Any
    ) -> AsyncIterator[RequestOutput]:
        self._ticker = self._ticker or asyncio.create_task(self._tick())
        loop, metrics, total = asyncio.get_running_loop(), RequestMetrics(), params.max_tokens or 1
        for i in range(total):
            future = loop.create_future()
            self._waiting.append(future)
            await future
            last = i == total - 1
            piece = CompletionOutput(0, " token", [5], finish_reason="length" if last else None)
            yield RequestOutput(request_id, None, [], [piece], last, metrics)

    def loras(self) -> list[AdapterInfo]:
        return []

    def load(self) -> Load:
        return Load()


def serve(sock: socket.socket, rate: float, spent: Any) -> None:
    app = create_app(Emitter(rate), ServerOptions(served_model_names=("m",)), None)  # type: ignore[arg-type]

    @app.get("/cpu")
    async def cpu() -> float:
        return time.process_time()

    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, loop="uvloop")).run([sock])


async def read(port: int, streams: int, tokens: int) -> tuple[float, int, float]:
    """Seconds, bytes and the server's processor seconds of all streams together."""
    body = b'{"prompt":[1,2,3],"stream":true,"max_tokens":%d}' % tokens
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        count = 0
        while data := await reader.read(1 << 16):
            count += len(data)
        writer.close()
        return count

    async def cpu() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /cpu HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return float(answer.rsplit(b"\r\n", 1)[1])

    before, started = await cpu(), time.monotonic()
    counts = await asyncio.gather(*(one() for _ in range(streams)))
    return time.monotonic() - started, sum(counts), await cpu() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--rate", type=float, default=0.0, help="steps a second; 0: as fast as it goes")
    options = parser.parse_args()
    sock = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = multiprocessing.get_context("fork").Process(target=serve, args=(sock, options.rate, None), daemon=True)
    server.start()
    time.sleep(2)
    seconds, count, cpu = uvloop.run(read(sock.getsockname()[1], options.streams, options.tokens))
    tokens = options.streams * options.tokens
    print(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f}/s, {count / tokens:.0f} bytes each")
    print(f"server: {cpu:.2f} s of processor time, {cpu / tokens * 1e6:.1f} us a token, {tokens / cpu:.0f}/s a core")
    server.kill()


if __name__ == "__main__":
    main()
