"""The description is true: it names every route, and nothing that is made of it breaks the server."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from helpers_client import FakeClient
from helpers_http import call, make, tokenizer
from octavo.server.app import ROUTERS
from octavo.server.openapi import GETS, POSTS

app, _ = make(FakeClient(tokenizer(), script=(1, 2, 3)), allow_lora_loading=True, trust_request_chat_template=True)
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


def test_it_names_every_route() -> None:
    described = call(app, "GET", "/openapi.json").json()["paths"]
    routes = {
        route.path.replace(":path", "") for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)
    }
    assert set(described) == routes == {*POSTS, *GETS}


def test_fields_are_those_that_are_read() -> None:
    described: Any = call(app, "GET", "/openapi.json").json()["components"]["schemas"]
    for body, _ in POSTS.values():
        assert set(described[body.__name__]["properties"]) == set(body.__struct_fields__)  # type: ignore[attr-defined]
        assert described[body.__name__]["additionalProperties"] is False


@pytest.mark.slow
@schema.parametrize()
@settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_nothing_that_it_allows_or_forbids_breaks_the_server(case: Any) -> None:
    response = case.call()
    assert response.status_code < 500, response.text
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(response, checks=checks)
