"""As little of OpenAI's chat API as a load needs, before OpenVINO GenAI's continuous-batching pipeline, which has none.

    openvino_server.py MODEL.gguf PORT [OPTIONS AS JSON: {"scheduler": {"max_num_seqs": 64}, …}]

A thread steps the pipeline; a request's tokens go to the event loop once a step. To cost next to nothing, each token's
text is made once and remembered: characters of several tokens are no concern of a load.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import openvino_genai as genai
from aiohttp import web
from worker_openvino import greedy, pipeline

Deliver = Callable[[list[int] | None], None]
"""Takes what a step brought; None: that was all."""


class Engine:
    """The pipeline and the thread that steps it."""

    def __init__(self, model: str, scheduler: Mapping[str, Any], **properties: Any) -> None:
        self._pipe = pipeline(model, scheduler, **properties)
        self._tokenizer = self._pipe.get_tokenizer()
        self.piece = functools.cache(lambda token: self._tokenizer.decode([token]))
        self._waiting: queue.SimpleQueue[tuple[Any, Any, Deliver]] = queue.SimpleQueue()
        self._running: dict[int, tuple[Any, Deliver]] = {}
        self._ids = itertools.count()
        threading.Thread(target=self._loop, daemon=True).start()

    def encode(self, messages: list[dict[str, str]]) -> Any:
        text = self._tokenizer.apply_chat_template(genai.ChatHistory(messages), add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False).input_ids

    def add(self, input_ids: Any, tokens: int, deliver: Deliver) -> None:
        self._waiting.put((input_ids, greedy(tokens), deliver))

    def _loop(self) -> None:
        while True:
            while not self._running or not self._waiting.empty():
                self._admit(*self._waiting.get())
            self._pipe.step()
            for request_id, (handle, deliver) in list(self._running.items()):
                self._read(request_id, handle, deliver)

    def _admit(self, input_ids: Any, config: Any, deliver: Deliver) -> None:
        request_id = next(self._ids)
        self._running[request_id] = self._pipe.add_request(request_id, input_ids, config), deliver

    def _read(self, request_id: int, handle: Any, deliver: Deliver) -> None:
        came: list[int] = []
        while handle.can_read():
            came += next(iter(handle.read().values())).generated_ids
        if came:
            deliver(came)
        if handle.get_status() != genai.GenerationStatus.RUNNING:
            del self._running[request_id]
            deliver(None)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def create_app(engine: Engine) -> web.Application:
    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        input_ids = engine.encode(body["messages"])
        loop, news = asyncio.get_running_loop(), asyncio.Queue[list[int] | None]()
        engine.add(input_ids, body["max_tokens"], lambda came: _post(loop, news, came))
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        count = 0
        while (came := await news.get()) is not None:
            count += len(came)
            text = "".join(map(engine.piece, came))
            await answer.write(event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}]))
        usage = {"prompt_tokens": input_ids.shape[1], "completion_tokens": count}
        await answer.write(event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}]))
        await answer.write(event(choices=[], usage=usage) + b"data: [DONE]\n\n")
        return answer

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "model"}]})

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    return app


def _post(loop: asyncio.AbstractEventLoop, news: asyncio.Queue[Any], came: list[int] | None) -> None:
    loop.call_soon_threadsafe(news.put_nowait, came)


if __name__ == "__main__":
    options = {"scheduler": {}, **(json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})}
    web.run_app(create_app(Engine(sys.argv[1], **options)), host="127.0.0.1", port=int(sys.argv[2]), print=None)
