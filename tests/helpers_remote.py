"""Engines in processes of their own, for tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers_engine import KV_BYTES
from octavo.client.remote import RemoteEngine
from octavo.client.wire import Limits
from octavo.config import EngineConfig
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams

_ids = itertools.count()


def tiny_config(path: Path, **options: Any) -> EngineConfig:
    """That of `helpers_engine.tiny_llm`."""
    return EngineConfig.from_kwargs(
        str(path), **{"dtype": "float32", "debug": True, "kv_cache_memory": KV_BYTES, **options}
    )


async def start(path: Path, limits: Limits | None = None, **options: Any) -> RemoteEngine:
    return await RemoteEngine.start(tiny_config(path, **options), limits)


async def read_all(
    engine: RemoteEngine, prompt: str | Sequence[int], params: SamplingParams, **options: Any
) -> list[RequestOutput]:
    """All outputs of a request."""
    options.setdefault("request_id", f"read-{next(_ids)}")
    return [output async for output in engine.generate(prompt, params, **options)]


def joined_tokens(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    """The token ids of each completion, put together from a stream of news."""
    tokens: dict[int, list[int]] = {}
    for output in outputs:
        for piece in output.outputs:
            tokens.setdefault(piece.index, []).extend(piece.token_ids)
    return [tokens[index] for index in sorted(tokens)]


async def tokens_of(engine: RemoteEngine, prompt: Sequence[int], params: SamplingParams) -> list[list[int]]:
    return joined_tokens(await read_all(engine, prompt, params))


async def until_idle(engine: RemoteEngine, seconds: float = 10) -> dict[str, Any]:
    """Wait until the engine has nothing to do, and check its blocks."""
    async with asyncio.timeout(seconds):
        while (counts := await engine.debug_check())["unfinished"]:
            await asyncio.sleep(0.01)
    return counts
