"""``/v1/embeddings``: texts as vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.client.verbs import FailedError
from octavo.errors import RequestError
from octavo.openai.embeddings import EmbeddingRequest, check_format, embedding_list, inputs_of
from octavo.outputs import RequestOutput
from octavo.server.asking import ask_of
from octavo.server.body import answer, read_body
from octavo.server.errors import DeadlineError
from octavo.server.prompts import encode, truncate
from octavo.server.run import Ask
from octavo.server.state import Server, server_of
from octavo.server.stream import unless_gone

router = APIRouter()


@router.post("/v1/embeddings")
async def create_embedding(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, EmbeddingRequest)
    if not server.client.info.can_embed:
        raise RequestError("this model cannot embed")
    served, as_base64 = server.names.find(body.model), check_format(body)
    ask = ask_of(request, "embd-", served, priority=body.priority)
    prompts = await server.texts.run_for(request.receive, ask.deadline, _prompts, server, body)
    outputs = await unless_gone(request.receive, _embed_all(server, ask, prompts))
    return answer(embedding_list(outputs, served.name, as_base64))


def _prompts(server: Server, body: EmbeddingRequest) -> list[list[int]]:
    special = body.add_special_tokens is not False
    return [truncate(encode(server, one, special), body.truncate_prompt_tokens) for one in inputs_of(body)]


async def _embed_all(server: Server, ask: Ask, prompts: Sequence[Sequence[int]]) -> list[RequestOutput]:
    """All vectors, or the first error, after which none of the others goes on; 504 where they take too long."""
    try:
        async with asyncio.timeout(ask.timeout), asyncio.TaskGroup() as group:
            tasks = [group.create_task(_embed(server, ask, i, prompt)) for i, prompt in enumerate(prompts)]
    except TimeoutError:
        raise _late() from None
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _embed(server: Server, ask: Ask, i: int, prompt: Sequence[int]) -> RequestOutput:
    output = await server.client.embed(
        prompt,
        request_id=f"{ask.id}-{i}",
        lora=ask.lora,
        priority=ask.priority,
        share_key=ask.share_key,
        timeout=ask.timeout,
    )
    if output.embedding is None:
        reason = output.outputs[0].stop_reason if output.outputs else None
        if reason == "deadline":
            raise _late()
        raise FailedError(f"input {i}: {reason or 'there is no vector of it'}")
    return output


def _late() -> DeadlineError:
    return DeadlineError("the time of the request has run out before all vectors were ready")
