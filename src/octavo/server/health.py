"""``/health`` and ``/ready``: is the engine moving, and may new requests come?

A server whose HTTP side answers says nothing about its engine. What does is the loop's step counter: it must grow while
there is work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from octavo.client.verbs import EngineClient, Load

LOOK_EVERY = 1.0
"""Seconds between two looks at the counter, so that ``/health`` need not be asked for time to be noticed."""


@dataclass(slots=True)
class Progress:
    """Watches snapshots: how long nothing has moved, while something should.

    Times are of the clock that snapshots carry.

    Attributes:
        moved_at: when a step last came back, or there was last no work.
    """

    moved_at: float
    _steps: int = -1

    def see(self, load: Load, now: float) -> None:
        if load.steps != self._steps or not _has_work(load):
            self.moved_at = now
        self._steps = load.steps

    def trouble(self, load: Load, now: float, limit: float) -> str | None:
        """Why the engine is not well, or None. ``limit`` is how many seconds it may stand still or be silent."""
        still, silent = now - self.moved_at, now - load.at
        if _has_work(load) and still > limit:
            return f"{load.running} running and {load.waiting} waiting requests, but no step for {still:.0f} s"
        if silent > limit:
            return f"the engine has not been heard of for {silent:.0f} s"
        return None


def _has_work(load: Load) -> bool:
    return load.running + load.waiting > 0


@dataclass(slots=True)
class Health:
    """What is known of the engine: kept by `watch`, asked by the routes.

    Attributes:
        stall_limit: seconds that work may wait without a step.
        draining: no new requests are taken, because the server is about to end.
        failure: why the engine is dead; None while it lives.
    """

    client: EngineClient
    stall_limit: float = 30.0
    clock: Callable[[], float] = time.monotonic
    draining: bool = False
    failure: str | None = None
    started_at: float = field(init=False)
    _progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.started_at = self.clock()
        self._progress = Progress(self.started_at)

    def trouble(self) -> str | None:
        """Why the server should be restarted, or None."""
        if self.failure is not None:
            return self.failure
        load, now = self.client.load(), self.clock()
        self._progress.see(load, now)
        return self._progress.trouble(load, now, self.stall_limit)

    def unready(self) -> str | None:
        """Why no new request should be sent here, or None."""
        return "the server is about to end" if self.draining else self.trouble()

    async def watch(self) -> None:
        """Look at the counter until the engine has died. To be cancelled when the server ends."""
        looking = asyncio.create_task(self._look())
        try:
            self.failure = await self.client.wait_failed()
        finally:
            looking.cancel()

    async def _look(self) -> None:
        while True:
            self._progress.see(self.client.load(), self.clock())
            await asyncio.sleep(LOOK_EVERY)

    def figures(self) -> dict[str, float | int]:
        """The newest snapshot, for the bodies."""
        load = self.client.load()
        return {
            "steps": load.steps,
            "running": load.running,
            "waiting": load.waiting,
            "waiting_tokens": load.waiting_tokens,
            "kv_cache_usage": round(load.blocks_used / max(self.client.info.num_blocks, 1), 4),
            "uptime": round(self.clock() - self.started_at, 1),
        }


def health_router(health: Health) -> APIRouter:
    """``/health`` says whether to restart, ``/ready`` whether to send requests: 200, or 503 with a reason."""
    router = APIRouter()

    def answer(trouble: str | None, well: str) -> JSONResponse:
        state = {"status": well} if trouble is None else {"status": "unavailable", "reason": trouble}
        return JSONResponse({**state, **health.figures()}, 200 if trouble is None else 503)

    @router.get("/health", summary="Whether the engine lives and moves", responses={503: {}})
    async def live() -> JSONResponse:
        return answer(health.trouble(), "ok")

    @router.get("/ready", summary="Whether new requests are taken", responses={503: {}})
    async def ready() -> JSONResponse:
        return answer(health.unready(), "ready")

    return router
