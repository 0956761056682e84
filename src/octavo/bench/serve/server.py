"""What a server says of itself, so that figures say what they were measured on."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from octavo.errors import OctavoError, UsageError

PATIENCE = aiohttp.ClientTimeout(total=10)


def describe_server(url: str, api_key: str | None, model: str | None) -> dict[str, Any]:
    """The server's address, the model to ask for (the first one it has, if none is named), and its version.

    Raises:
        UsageError: ``model`` is none of its models. OctavoError: it cannot be reached, or serves no model.
    """
    return asyncio.run(_describe(url.rstrip("/"), api_key, model))


async def _describe(url: str, api_key: str | None, model: str | None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with aiohttp.ClientSession(timeout=PATIENCE, headers=headers) as session:
        try:
            status, listed = await _get(session, f"{url}/v1/models")
            version = await _get(session, f"{url}/version")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise OctavoError(
                f"no server at {url}: {error or type(error).__name__}; accepted: http://HOST:PORT"
            ) from None
    if status != 200:
        key = "the server does not know --api-key" if api_key else "give --api-key"
        raise OctavoError(f"{url}/v1/models answers with status {status}" + f"; {key}" * (status == 401))
    found = {"server": url, "served_model": _choose(listed, model)}
    return {**found, "server_version": version[1].get("version")} if version[0] == 200 else found


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON; an empty object where there is none."""
    async with session.get(url) as answer:
        if answer.content_type != "application/json":
            return answer.status, {}
        value = await answer.json()
        return answer.status, value if isinstance(value, dict) else {}


def _choose(listed: dict[str, Any], model: str | None) -> str:
    names = [str(entry.get("id")) for entry in listed.get("data", ()) if isinstance(entry, dict)]
    if model is None and not names:
        raise OctavoError("the server lists no model; give --model")
    if model is not None and names and model not in names:
        raise UsageError(f"the server has no model {model!r}; accepted: {', '.join(names)}")
    return model or names[0]
