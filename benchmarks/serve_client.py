"""What `octavo bench serve` itself can take in: streams from a server that does nothing but write.

    python benchmarks/serve_client.py [--streams 256] [--rate 90] [--tokens 900] [--processes 1]

The server is a bare asyncio protocol: every 1 / rate seconds it writes one event to each stream. The client keeps up if
gaps are what was sent and it is not busy all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
from multiprocessing.connection import Connection

from octavo.bench.environment import describe_machine
from octavo.bench.serve.figures import figures_of
from octavo.bench.serve.plan import Planned
from octavo.bench.serve.processes import run_load
from octavo.bench.serve.target import Target
from octavo.bench.serve.text import figures_text

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIELDS = b'"id":"cmpl-0123456789abcdef01234567","object":"text_completion","created":1700000000,"model":"m"'
EVENT = b'data: {%s,"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null}]}\n\n' % FIELDS
END = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Stream(asyncio.Protocol):
    """Answers any request with ``tokens`` events, one a tick."""

    def __init__(self, tokens: int, live: set[Stream]) -> None:
        self.left, self.live, self.seen = tokens, live, b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen += data
        if self.seen.endswith(b"}"):
            self.transport.write(HEAD)
            self.live.add(self)

    def tick(self) -> None:
        self.transport.write(chunk(EVENT))
        self.left -= 1
        if not self.left:
            self.live.discard(self)
            self.transport.write(chunk(END) + b"0\r\n\r\n")
            self.transport.close()


async def serve(rate: float, tokens: int, port: Connection) -> None:
    """Until the process is ended."""
    live: set[Stream] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stream(tokens, live), "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    due = loop.time()
    while True:
        due += 1 / rate
        for stream in list(live):
            stream.tick()
        await asyncio.sleep(max(due - loop.time(), 0))


def run_server(rate: float, tokens: int, port: Connection) -> None:
    import uvloop

    uvloop.run(serve(rate, tokens, port))


def main() -> None:
    parser = argparse.ArgumentParser(description="Pieces a second that the load generator takes in.")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=90.0, help="events a second to each stream")
    parser.add_argument("--tokens", type=int, default=900, help="events of each stream")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=run_server, args=(args.rate, args.tokens, there), daemon=True)
    server.start()
    target = Target(f"http://127.0.0.1:{here.recv()}", "m")
    driven = run_load(target, [Planned(0.0, "p", args.tokens)] * args.streams, processes=args.processes)
    server.terminate()
    print(*(f"{key}: {value}" for key, value in describe_machine().items()), sep="\n")
    print(figures_text(figures_of(driven.outcomes, {}, driven.busy)))


if __name__ == "__main__":
    main()
