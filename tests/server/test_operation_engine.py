"""The application over a real engine in its own process, under load, and when the engine stops."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn

from helpers_cli import make_chat_model
from helpers_grammar import TOO_COMPLEX
from octavo.bench.serve.arrivals import Arrivals
from octavo.bench.serve.drive import drive
from octavo.bench.serve.figures import figures_of
from octavo.bench.serve.prompts import plain_words
from octavo.bench.serve.target import Target
from octavo.bench.serve.workload import Workload
from octavo.bench.workload import LengthRange
from octavo.config import EngineConfig
from octavo.server.app import create_app
from octavo.server.options import ServerOptions
from octavo.text.tokenizer import load_tokenizer

remote = pytest.importorskip("octavo.client.remote")

ENGINE = {"kv_cache_memory": 8 << 20, "block_size": 4, "max_num_batched_tokens": 256, "debug": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("operation") / "chat")


@asynccontextmanager
async def serving(model: Path, **options: Any) -> AsyncIterator[tuple[str, Any]]:
    """The address of a server, and its engine's client, inside the block."""
    engine = await remote.RemoteEngine.start(EngineConfig.from_kwargs(str(model), **ENGINE))
    app = create_app(engine, ServerOptions(debug_routes=True, **options), load_tokenizer(model))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    running = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
    finally:
        server.should_exit = True
        await running
        await engine.shutdown(1)


async def until(http: httpx.AsyncClient, path: str, status: int, seconds: float) -> dict[str, Any]:
    """The body of the first answer with this status."""
    async with asyncio.timeout(seconds):
        while (answer := await http.get(path)).status_code != status:
            await asyncio.sleep(0.02)
    body: dict[str, Any] = answer.json()
    return body


def test_nothing_is_lost_and_no_block_leaked(model: Path) -> None:
    """A small soak; `benchmarks/soak.py` does the large one."""
    workload = Workload(
        count=150,
        input_len=LengthRange(1, 20),
        output_len=LengthRange(1, 12),
        arrivals=Arrivals(),
        disconnect=0.2,
        malformed=0.1,
    )
    plan = workload.plan(random.Random(0), plain_words())

    async def go() -> None:
        async with serving(model) as (url, _), httpx.AsyncClient(base_url=url) as http:
            figures = figures_of(await drive(Target(url, str(model)), plan, 0.0, concurrency=16), {})
            assert figures.errors == {}
            assert figures.completed + figures.left + figures.malformed == 150
            assert min(figures.left, figures.malformed) > 5
            async with asyncio.timeout(20):
                while (await http.get("/health")).json()["running"]:
                    await asyncio.sleep(0.02)
            check = (await http.post("/debug/check")).json()
            assert (check["unfinished"], check["free_blocks"]) == (0, check["num_blocks"])
            text = (await http.get("/metrics")).text
            counted = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(ENDED))
            assert figures.completed <= counted <= figures.completed + figures.left  # some leave before they are asked

    asyncio.run(go())


@pytest.mark.parametrize(
    "marks",
    [("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")],
    ids=["StarCoder2", "Qwen2.5-Coder"],
)
def test_a_model_that_fills_in_is_asked_with_its_own_tokens(tmp_path: Path, marks: tuple[str, str, str]) -> None:
    """What it writes is what it writes after these very tokens, in this order."""
    model = make_chat_model(tmp_path / "filler", special=marks)
    tokenizer = load_tokenizer(model)
    before, after, middle = (tokenizer.token_to_id(mark) for mark in marks)
    prefix, suffix = "def twice(n):\n    return ", "\n\nprint(twice(4))"
    parts = [tokenizer.encode(text, add_special_tokens=False) for text in (prefix, suffix)]
    ids = [*tokenizer.encode(""), before, *parts[0], after, *parts[1], middle]

    async def go() -> None:
        async with serving(model) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as http:
            ask = {"max_tokens": 12, "temperature": 0, "return_token_ids": True}
            plain = (await http.post("/v1/completions", json={**ask, "prompt": ids})).json()
            filled = (await http.post("/v1/completions", json={**ask, "prompt": prefix, "suffix": suffix})).json()
            (choice,) = filled["choices"]
            assert choice["prompt_token_ids"] == ids
            assert choice["text"] == plain["choices"][0]["text"] != ""
            assert filled["usage"]["prompt_tokens"] == len(ids)
            streamed = await http.post(
                "/v1/completions", json={**ask, "prompt": prefix, "suffix": suffix, "stream": True}
            )
            events = [json.loads(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: {")]
            assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]
            wrong = await http.post("/v1/completions", json={**ask, "prompt": ids, "suffix": suffix})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "suffix")

    asyncio.run(go())


FORM = TOO_COMPLEX["grammar"]
HI = [{"role": "user", "content": "Hi"}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "Hi", "guided_grammar": FORM}),
    ("/v1/chat/completions", {"messages": HI, "guided_grammar": FORM}),
]


def test_a_grammar_that_fails_in_the_middle_of_an_answer_is_the_senders_mistake(model: Path) -> None:
    """A status if nothing was sent yet, else the last event; who has asked for something else notices nothing."""

    async def go() -> None:
        async with serving(model) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as http:
            other = asyncio.create_task(http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 60}))
            for path, asked in ASKED:
                body = {**asked, "max_tokens": 80, "temperature": 1, "seed": 1}
                answer = await http.post(path, json=body)
                error = answer.json()["error"]
                found = (answer.status_code, error["type"], error["param"])
                assert found == (400, "invalid_request_error", "guided_grammar")
                assert "cannot go on after what was written" in error["message"]
                streamed = await http.post(path, json={**body, "stream": True})
                *before, last = [line for line in streamed.text.split("\n\n") if line]
                assert (streamed.status_code, len(before) > 1) == (200, True)
                assert json.loads(last.removeprefix("data: "))["error"] == error
                assert (await http.get("/health")).status_code == 200
            assert (await other).json()["usage"]["completion_tokens"] == 60
            check = (await http.post("/debug/check")).json()
            assert (check["unfinished"], check["free_blocks"]) == (0, check["num_blocks"])

    asyncio.run(go())


SEVEN = 26
"""The id of "7"."""

BANS: list[tuple[dict[str, Any], int, str]] = [
    ({"bad_words": ["7"]}, 0, "allowed_token_ids, bad_words"),
    ({"bad_words": ["7" * 40]}, 39, "allowed_token_ids, bad_words"),
    ({"bad_words": ["7" * 40], "n": 2}, 39, "allowed_token_ids, bad_words"),
    ({"min_tokens": 2, "stop_token_ids": [SEVEN]}, 0, "allowed_token_ids, min_tokens (no stop token before it)"),
]
"""Options beside one allowed token, how many tokens they leave, and which of them are to blame."""


def test_options_that_leave_no_token_are_the_senders_mistake(model: Path) -> None:
    """A status if nothing was sent yet, else the last event; who has asked for something else notices nothing."""
    assert load_tokenizer(model).encode("7", add_special_tokens=False) == [SEVEN]
    plain = {"prompt": "Hi", "max_tokens": 60, "temperature": 1, "seed": 7, "return_token_ids": True}

    async def go() -> None:
        async with serving(model) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as http:
            alone = (await http.post("/v1/completions", json=plain)).json()["choices"]
            other = asyncio.create_task(http.post("/v1/completions", json=plain))
            for path, asked in (("/v1/completions", {"prompt": "Hi"}), ("/v1/chat/completions", {"messages": HI})):
                for options, num_tokens, names in BANS:
                    body = {**asked, "max_tokens": 60, "allowed_token_ids": [SEVEN], **options}
                    answer = await http.post(path, json=body)
                    error = answer.json()["error"]
                    found = (answer.status_code, error["type"], error["param"])
                    assert found == (400, "invalid_request_error", "allowed_token_ids")
                    assert error["message"].startswith(f"{names}: every token is banned")
                    streamed = await http.post(path, json={**body, "stream": True})
                    *before, last = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
                    assert json.loads(last)["error"] == error
                    assert (streamed.status_code, len(before) > 0) == ((200, True) if num_tokens else (400, False))
            assert (await http.get("/health")).status_code == 200
            assert (await other).json()["choices"] == alone
            check = (await http.post("/debug/check")).json()
            assert (check["unfinished"], check["free_blocks"]) == (0, check["num_blocks"])

    asyncio.run(go())


ENDED = "octavo:e2e_request_latency_seconds_count"


def test_health_follows_the_engine_through_standstill_and_death(model: Path) -> None:
    async def go() -> None:
        async with serving(model, stall_seconds=1.0) as (url, engine), httpx.AsyncClient(base_url=url) as http:
            child = psutil.Process(engine.pid)
            assert (await until(http, "/health", 200, 5))["status"] == "ok"
            child.suspend()
            assert "the engine has not been heard of" in (await until(http, "/health", 503, 10))["reason"]
            child.resume()
            await until(http, "/ready", 200, 10)
            os.kill(child.pid, signal.SIGKILL)
            assert "SIGKILL" in (await until(http, "/health", 503, 2))["reason"]
            answer = await http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 3})
            assert answer.status_code == 503
            assert "SIGKILL" in answer.json()["error"]["message"]

    asyncio.run(go())
