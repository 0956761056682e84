"""The servers that `chat_load.py` compares: their commands, and each one's life."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sides import HERE, Side
from worker_llama import HUGE_PAGES

CONTEXT = 1152
"""Tokens that one of llama.cpp's slots has: the longest prompt with its template, and the longest answer."""
STEP_TOKENS = 2048
"""Most tokens of a step, for Octavo and OpenVINO. llama.cpp's default is the same."""
WARM_UP = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 32, "ignore_eos": True}
PATIENCE = 120
"""Seconds that a server has to start in."""


def server_command(side: Side, port: int, args: Namespace) -> list[str]:
    """Options of a side are the server's own: ``octavo:…,quantize=int8``, ``llama:…,np=16``."""
    if side.engine == "octavo":
        limits = {"max-num-seqs": args.at_once, "max-num-batched-tokens": STEP_TOKENS}
        words = [w for name, value in (limits | dict(side.options)).items() for w in (f"--{name}", str(value))]
        return [sys.executable, "-m", "octavo", "serve", side.model, "--port", str(port), *words]
    if side.engine == "openvino":
        limits = {"max_num_seqs": args.at_once, "max_num_batched_tokens": STEP_TOKENS, "enable_prefix_caching": True}
        options = json.dumps({"scheduler": limits | dict(side.options)})
        return [args.openvino_python, str(HERE / "openvino_server.py"), side.model, str(port), options]
    if side.engine == "llama":
        slots, threads = side.options.get("np", args.at_once), len(os.sched_getaffinity(0))
        sizes = {"np": slots, "c": slots * CONTEXT, "b": STEP_TOKENS, "t": threads, "tb": threads, "lm": "none"}
        words = [w for name, value in (sizes | dict(side.options)).items() for w in (f"-{name}", str(value))]
        return [f"{args.llama_tools}/llama-server", "-m", side.model, *words, "--port", str(port)]
    raise SystemExit(f"{side.engine} has no server here; accepted: octavo, llama, openvino")


@contextmanager
def running_server(side: Side, args: Namespace) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server that answers and is warm, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **(HUGE_PAGES if side.engine == "llama" else {})}
    command = server_command(side, port, args)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **quiet)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/v1/models", process, command)
        warm_up(url)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes], command: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"no server: {' '.join(command)}")


def warm_up(url: str) -> None:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(f"{url}/v1/models", timeout=PATIENCE) as found:
        model = json.loads(found.read())["data"][0]["id"]
    body = json.dumps({"model": model, "stream": True, **WARM_UP}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body, headers)) as answer:
        answer.read()


def shown_command(side: Side, args: Namespace) -> str:
    """For the record: programs and files without the folders that they are in."""
    words = [Path(word).name if word.startswith("/") else word for word in server_command(side, 8000, args)]
    variables = [f"{k}={v}" for k, v in HUGE_PAGES.items()] if side.engine == "llama" else []
    return " ".join([*variables, *words])


def seconds_of(server: psutil.Process) -> float:
    """Of processors, that a server and the processes that it started have used."""
    return sum(sum(p.cpu_times()[:2]) for p in (server, *server.children(recursive=True)))
