"""Health is what the step counter says."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from helpers_scripted_engine import Clock, ScriptedEngine
from octavo.client.verbs import Load
from octavo.server.health import Health, Progress, health_router

LIMIT = 30.0


def after(*seen: tuple[float, Load], now: float) -> str | None:
    """What is wrong at ``now``, with a snapshot just as old as the last one that was seen."""
    progress = Progress(0.0)
    for at, load in seen:
        progress.see(load, at)
    return progress.trouble(seen[-1][1], now, LIMIT)


def busy(steps: int, at: float) -> Load:
    return Load(steps=steps, running=1, waiting=2, at=at)


def test_work_that_stands_still_is_trouble() -> None:
    assert after((10, busy(5, 10)), (40, busy(5, 40)), now=40) is None
    assert (
        after((10, busy(5, 10)), (41, busy(5, 41)), now=41) == "1 running and 2 waiting requests, but no step for 31 s"
    )
    assert after((10, busy(5, 10)), (40, busy(6, 40)), now=69) is None


def test_an_idle_engine_is_well_for_ever() -> None:
    assert after((10, Load(steps=5, at=10)), (9999, Load(steps=5, at=9999)), now=9999) is None


def test_time_without_work_is_no_standstill() -> None:
    seen = ((10, busy(5, 10)), (1000, Load(steps=5, at=1000)), (1001, busy(5, 1001)))
    assert after(*seen, now=1030) is None
    assert after(*seen, now=1031) is not None


def test_silence_is_trouble_even_without_work() -> None:
    assert after((10, Load(steps=5, at=10)), now=40) is None
    assert after((10, Load(steps=5, at=10)), now=41) == "the engine has not been heard of for 31 s"


def make() -> tuple[ScriptedEngine, Health, TestClient]:
    engine = ScriptedEngine(Clock(100.0), state=Load(steps=1, running=1, blocks_used=10, at=100.0))
    health = Health(engine, LIMIT, engine.clock)
    api = FastAPI()
    api.include_router(health_router(health))
    return engine, health, TestClient(api)


def test_the_routes_tell_the_reason_and_the_figures() -> None:
    engine, health, http = make()
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "steps": 1,
        "running": 1,
        "waiting": 0,
        "waiting_tokens": 0,
        "kv_cache_usage": 0.2,
        "uptime": 0.0,
    }
    engine.clock.now = 131.0
    engine.state = Load(steps=1, running=1, at=130.0)
    for path in ("/health", "/ready"):
        answer = http.get(path)
        assert answer.status_code == 503
        assert "no step for 31 s" in answer.json()["reason"]
    engine.state = Load(steps=2, running=1, at=131.0)
    assert http.get("/health").status_code == 200
    health.draining = True
    assert http.get("/health").status_code == 200
    assert http.get("/ready").json()["reason"] == "the server is about to end"


def test_a_dead_engine_is_told_with_its_reason() -> None:
    engine, health, http = make()

    async def die() -> None:
        watching = asyncio.create_task(health.watch())
        await asyncio.sleep(0.01)
        assert engine.died is not None
        engine.died.set_result("killed by signal 9: out of memory?")
        await asyncio.wait_for(watching, 5)

    asyncio.run(die())
    answer = http.get("/health")
    assert (answer.status_code, answer.json()["reason"]) == (503, "killed by signal 9: out of memory?")


def test_the_counter_is_looked_at_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.health.LOOK_EVERY", 0.001)
    engine, health, http = make()
    engine.state = Load(steps=1, at=100.0)

    async def idle_then_busy() -> None:
        watching = asyncio.create_task(health.watch())
        engine.clock.now = 500.0  # idle until now: whoever looks only at requests would say "400 s"
        looks = engine.looks
        while engine.looks < looks + 2:
            await asyncio.sleep(0.001)
        watching.cancel()

    asyncio.run(idle_then_busy())
    engine.state = Load(steps=1, running=1, at=505.0)
    engine.clock.now = 505.0
    assert http.get("/health").status_code == 200
