"""What it costs to go through HTTP: the same work by ``LLM.generate`` and by servers, in turns on the same cores.

    python benchmarks/cpu/http_cost.py smollm2-135m --server stream-interval-ms=0 --server "" --rounds 7 \\
        --json benchmarks/results/cpu_http.json

All streams begin at once, are greedy, have random prompts and full length. Tokens a second count from the first byte
that is sent to the last one that is read, so the prompts' time is in them. Each ``--server`` is one with these options
of ``octavo serve`` (``NAME=VALUE,…``). The client is a few lines in this process, on the same cores. ``others`` is the
share of the processors that none of these took: rounds in which it was large are better left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from decode import add_run
from machine import describe_machine
from servers import running_server, seconds_of, shown_command
from sides import Side, Worker, busy_seconds, others_share
from worker_loop import Work

HEAD = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"


async def read_streams(port: int, prompts: list[list[int]], tokens: int) -> int:
    """Send all prompts at once; the number of pieces that came."""

    async def read_one(prompt: list[int]) -> int:
        fields = {"prompt": prompt, "stream": True, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body = json.dumps(fields)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{HEAD}content-length: {len(body)}\r\n\r\n{body}".encode())
        pieces, last = 0, b""
        while data := await reader.read(1 << 16):
            pieces, last = pieces + data.count(b"data: {"), (last + data)[-200:]
        writer.close()
        if b"data: [DONE]" not in last:
            raise RuntimeError(f"a stream did not end as it should: {last!r}")
        return pieces

    return sum(await asyncio.gather(*map(read_one, prompts)))


def http_round(url: str, server: psutil.Process, work: Work, vocab_size: int) -> dict[str, Any]:
    """Tokens a second, pieces, microseconds of the HTTP process for a token, and ``others``."""
    prompts, own = work.prompts(vocab_size), psutil.Process()

    def used() -> list[float]:
        return [busy_seconds(), seconds_of(server), sum(own.cpu_times()[:2]), sum(server.cpu_times()[:2])]

    before, start = used(), time.perf_counter()
    pieces = uvloop.run(read_streams(urlsplit(url).port or 80, prompts, work.tokens))
    seconds, tokens = time.perf_counter() - start, work.sequences * work.tokens
    busy, served, client, http = (now - then for now, then in zip(used(), before, strict=True))
    return {
        "rate": tokens / seconds,
        "pieces": pieces,
        "http, us a token": round(http / tokens * 1e6, 1),
        "client, us a token": round(client / tokens * 1e6, 1),
        "others": others_share(busy - served - client, seconds),
    }


def run_rounds(args: argparse.Namespace, servers: list[Side]) -> list[dict[str, Any]]:
    """One of each side in each round, the first one ``generate``; every second round goes backwards."""
    generate = Side("generate", "octavo", args.model, {"way": "whole"})
    found = []
    with ExitStack() as stack:
        worker = stack.enter_context(Worker(generate, {}, ""))
        urls = [(side, *stack.enter_context(running_server(side, args))) for side in servers]
        for i in range(args.rounds + 1):  # the first one warms up
            fields = {"sequences": args.streams, "prompt": args.prompt, "tokens": args.tokens, "seed": i}
            work = Work(**fields)
            one = [{"side": "generate", "rate": (told := worker.run(fields))["decode"], "others": told["others"]}]
            one += [{"side": s.name, **http_round(url, process, work, args.vocab)} for s, url, process in urls]
            urls.reverse()
            print(f"  {one}", file=sys.stderr, flush=True)
            found += one if i else []
    return found


def show(rounds: list[dict[str, Any]]) -> None:
    """Medians of the rates, and of each one's part of ``generate`` in its round."""
    base = [r["rate"] for r in rounds if r["side"] == "generate"]
    for name in dict.fromkeys(r["side"] for r in rounds):
        rates = [r["rate"] for r in rounds if r["side"] == name]
        parts = [rate / whole for rate, whole in zip(rates, base, strict=True)]
        spread = f"({min(parts):.3f} to {max(parts):.3f})"
        print(f"{name:50} {statistics.median(rates):8.1f} tokens/s   {statistics.median(parts):.3f} {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--server", action="append", metavar="NAME=VALUE,…", help="options of one; may come again")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--vocab", type=int, default=40_000, help="prompts are of tokens below")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.at_once = args.streams
    servers = [Side.parse(",".join(filter(None, [f"octavo:{args.model}", text]))) for text in args.server or [""]]
    rounds = run_rounds(args, servers)
    show(rounds)
    if args.json:
        work = {"streams": args.streams, "prompt": args.prompt, "answer": args.tokens}
        commands = {side.name: shown_command(side, args) for side in servers}
        add_run(args.json, {**describe_machine(), "servers": commands, "work": work, "rounds": rounds})


if __name__ == "__main__":
    main()
