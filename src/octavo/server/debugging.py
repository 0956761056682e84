"""Routes for tests and operators. They are there only where the server was asked for them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from octavo.client.verbs import EngineClient


def debug_router(client: EngineClient) -> APIRouter:
    """``POST /debug/check`` and ``POST /debug/reset_prefix_cache``."""
    router = APIRouter()

    @router.post("/debug/check", summary="Check the KV cache's invariants between two steps")
    async def check() -> dict[str, Any]:
        return await client.debug_check()

    @router.post("/debug/reset_prefix_cache", summary="Forget all cached prefixes")
    async def reset() -> dict[str, Any]:
        await client.reset_prefix_cache()
        return {}

    return router
