"""API keys: the file, its changes, and who is let in."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from helpers_scripted_engine import Clock
from octavo.errors import UsageError
from octavo.server.authentication import Authentication
from octavo.server.caller import caller_in, caller_of
from octavo.server.keys import KeyRing, make_key, parse_keys


def test_a_file_of_keys() -> None:
    text = "# team\nalice:sk-1\n\n  bob.b@x-y:sk:2 priority=-3 max_requests=2\n"
    keys = parse_keys(text, "keys")
    assert [(k.name, k.priority, k.max_requests) for k in keys] == [("alice", 0, None), ("bob.b@x-y", -3, 2)]
    assert keys[1] == make_key("bob.b@x-y", "sk:2", -3, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice", "keys, line 1: accepted: name:key"),
        ("# x\nal ice:SECRET", "keys, line 2: accepted: name:key"),
        ("alice:", "line 1: accepted"),
        (":SECRET", "line 1: accepted"),
        ("alice:SECRET-ü", "line 1: accepted"),
        ("alice:SECRET max_requests=0", "option 'max_requests=0'"),
        ("alice:SECRET priority=x", "option 'priority=x'"),
        ("alice:SECRET speed=9", "option 'speed=9'"),
        ("alice:SECRET\nalice:b", "keys has a name twice"),
        ("alice:SECRET\nbob:SECRET", "keys has a key twice"),
        ("a" * 65 + ":SECRET", "line 1: accepted"),
        ("alice: \t ", "line 1: accepted"),
        ("alice:\u00a0\u2003", "line 1: accepted"),
    ],
)
def test_wrong_files_are_told_without_the_key(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_keys(text, "keys")
    assert "SECRET" not in str(caught.value)


def test_a_changed_file_is_read_again_and_a_wrong_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, file = Clock(), tmp_path / "keys"
    file.write_text("alice:one")
    ring = KeyRing(file=file, clock=clock)

    def named(key: str) -> str | None:
        clock.now += 2
        found = ring.find(key)
        return found.name if found else None

    assert (named("one"), named("two"), named("")) == ("alice", None, None)
    file.write_text("alice:one\nbob:two")
    assert named("two") == "bob"
    for wrong in ("rubbish", "", "# bob\nrubbish"):
        caplog.clear()
        file.write_text(wrong)
        assert named("two") == "bob"
        assert "API keys stay as they were" in caplog.text
    file.unlink()
    assert named("two") == "bob"
    replacement = tmp_path / "new"
    replacement.write_text("carol:three")
    os.replace(replacement, file)
    assert (named("two"), named("three")) == (None, "carol")


@pytest.mark.parametrize("text", ["# bob:two\n", "\n"])
def test_the_last_key_of_a_file_can_be_revoked(tmp_path: Path, text: str) -> None:
    clock, file = Clock(), tmp_path / "keys"
    file.write_text("bob:two")
    ring = KeyRing([make_key("alice", "one")], file, clock)
    alone = KeyRing(file=file, clock=clock)
    file.write_text(text)
    clock.now += 2
    assert (ring.find("two"), alone.find("two")) == (None, None)
    assert ring.find("one") is not None
    assert alone.wanted, "nobody is let in, and not everybody"
    file.write_text("bob:three")
    clock.now += 2
    assert ring.find("three") is not None


def test_the_file_is_not_looked_at_for_every_request(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "keys"
    file.write_text("alice:one")
    ring = KeyRing(file=file, clock=clock)
    file.write_text("bob:two")
    clock.now += 0.5
    assert ring.find("two") is None
    clock.now += 0.5
    assert ring.find("two") is not None


def test_no_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        KeyRing(file=tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no UTF-8"):
        KeyRing(file=tmp_path / "binary")


def guarded(keys: KeyRing) -> TestClient:
    app = FastAPI()
    app.add_middleware(Authentication, keys=keys)

    @app.get("/v1/whoami")
    @app.get("/v1/messages")
    async def whoami(request: Request) -> dict[str, Any]:
        caller = caller_of(request)
        return {"name": caller.name, "priority": caller.priority}

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return TestClient(app)


RING = KeyRing([make_key("alice", "sk-1"), make_key("bob", "sk-2", priority=4)])


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer sk-2"}, {"authorization": "bearer  sk-2 "}, {"x-api-key": "sk-2"}]
)
def test_both_ways_to_bring_a_key(headers: dict[str, str]) -> None:
    assert guarded(RING).get("/v1/whoami", headers=headers).json() == {"name": "bob", "priority": 4}


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "send Authorization: Bearer KEY"),
        ({"Authorization": "sk-1"}, "send Authorization"),
        ({"Authorization": "Basic sk-1"}, "send Authorization"),
        ({"Authorization": "Bearer "}, "send Authorization"),
        ({"Authorization": "Bearer sk-"}, "the API key is not known"),
        ({"Authorization": "Bearer sk-1x"}, "the API key is not known"),
        ({"Authorization": b"Bearer \xff\xfe"}, "the API key is not known"),
        ({"x-api-key": "SK-1"}, "the API key is not known"),
        ({"Authorization": "Bearer wrong", "x-api-key": "sk-1"}, "the API key is not known"),
    ],
)
def test_without_a_known_key_nobody_is_let_in(headers: Any, message: str) -> None:
    client = guarded(RING)
    answer = client.get("/v1/whoami", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    anthropic = client.get("/v1/messages", headers=headers).json()
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")
    assert client.get("/v1/nothing", headers=headers).status_code == 401
    assert client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize("text", ["", "# SECRET\n \t\n\n"])
def test_no_keys_let_everybody_in_but_a_file_without_any_needs_others_beside_it(tmp_path: Path, text: str) -> None:
    assert guarded(KeyRing()).get("/v1/whoami").json() == {"name": "", "priority": 0}
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UsageError, match="keys has no API key; accepted: a line name:key") as caught:
        KeyRing(file=tmp_path / "keys")
    assert "SECRET" not in str(caught.value)
    client = guarded(KeyRing([make_key("alice", "sk-1")], tmp_path / "keys"))
    assert client.get("/v1/whoami", headers={"x-api-key": "sk-1"}).json()["name"] == "alice"
    assert client.get("/v1/whoami").status_code == 401


def test_a_key_has_its_most_requests_at_once() -> None:
    keys = KeyRing([make_key("alice", "sk-1", max_requests=1), make_key("bob", "sk-2")])
    app, entered, release = FastAPI(), threading.Event(), threading.Event()
    app.add_middleware(Authentication, keys=keys)

    @app.get("/slow")
    def slow() -> str:
        entered.set()
        release.wait(20)
        return "done"

    def get(key: str) -> Any:
        return TestClient(app).get("/slow", headers={"x-api-key": key})

    first = threading.Thread(target=get, args=("sk-1",))
    first.start()
    assert entered.wait(20)
    refused = get("sk-1")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "'alice' has 1 requests at work" in refused.json()["error"]["message"]
    release.set()
    assert get("sk-2").status_code == 200
    first.join(20)
    assert get("sk-1").status_code == 200


def test_whose_limit_it_was_stands_in_the_log() -> None:
    """The second request comes while the first one is at work."""
    keys, statuses, scopes = KeyRing([make_key("alice", "sk-1", max_requests=1)]), [], []

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    async def app(*_: Any) -> None:
        await ask()

    door = Authentication(app, keys)

    async def ask() -> None:
        scopes.append({"type": "http", "path": "/v1/models", "headers": [(b"x-api-key", b"sk-1")]})
        await door(scopes[-1], receive, send)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    asyncio.run(ask())
    assert statuses[0] == 429
    assert [caller_in(scope).name for scope in scopes] == ["alice", "alice"]
