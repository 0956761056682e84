"""Options of ``octavo serve`` for those who operate it: who may ask, how much, and what is told of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from octavo.cli.options import ByteSize, Decorator

FILE = click.Path(path_type=Path)
API_KEY = "OCTAVO_API_KEY"
"""An environment variable: a key, or several with spaces between them."""

SECONDS = click.FloatRange(0, min_open=True)


class Origin(click.ParamType):
    """What a browser sends as ``Origin``: scheme, host and port as it writes them, or one that lets nobody in."""

    name = "origin"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@,*\sA-Z]+", text):
            self.fail(f"{text!r} is no origin; accepted: https://HOST, http://HOST:PORT, *", param, ctx)
        return text


_OPTIONS: list[Decorator] = [
    click.option(
        *("--api-key", "api_keys"),
        multiple=True,
        envvar=API_KEY,
        metavar="KEY",
        help="Accepted key; several may be given. Or OCTAVO_API_KEY.",
    ),
    click.option("--api-key-file", type=FILE, metavar="FILE", help="Lines of name:key [priority=N] [max_requests=N]."),
    click.option("--ssl-certfile", type=FILE, metavar="FILE", help="TLS certificate, in PEM form."),
    click.option("--ssl-keyfile", type=FILE, metavar="FILE", help="Its key."),
    click.option(
        *("--cors-origin", "cors_origins"),
        multiple=True,
        type=Origin(),
        metavar="ORIGIN",
        help="Of web pages that may ask: https://chat.example; * is all.",
    ),
    click.option("--max-body", "max_body_bytes", type=ByteSize(), default="32M", help="Of a request; 32M."),
    click.option("--max-timeout", type=SECONDS, metavar="S", help="Longest that a request may take."),
    click.option("--receive-timeout", type=SECONDS, default=60.0, show_default=True, help="Until a request has come."),
    click.option("--send-timeout", type=SECONDS, default=60.0, show_default=True, help="A reader may pause."),
    click.option("--stall-seconds", type=SECONDS, default=30.0, show_default=True, help="Without a step."),
    click.option("--metrics-prefix", type=click.Choice(["octavo", "vllm"]), default="octavo", show_default=True),
    click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True),
    click.option("--log-texts", is_flag=True, help="Write prompts and answers into the log."),
    click.option("--otlp-endpoint", metavar="URL", help="Send traces there: http://HOST:4318/v1/traces."),
    click.option("--debug-routes", is_flag=True, help="Add /debug/check and /debug/reset_prefix_cache."),
]
_OF_THE_SERVER = (
    *("api_keys", "api_key_file", "cors_origins", "max_body_bytes", "max_timeout", "stall_seconds"),
    *("metrics_prefix", "log_texts", "otlp_endpoint", "debug_routes"),
)
"""Names of ``ServerOptions``' fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operating:
    """What was asked for.

    Attributes:
        server: fields of ``ServerOptions``.
        uvicorn: arguments of ``uvicorn.Config``.
        log_format: one of ``octavo.server.logs.FORMATS``.
    """

    server: dict[str, Any]
    uvicorn: dict[str, Any]
    log_format: str


def operation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; `split_operation_options` takes them out again."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def split_operation_options(options: dict[str, Any]) -> Operating:
    """Remove these options from ``options``, and look at files that they name.

    Raises:
        UsageError: a certificate and its key are wrong, or an API key or a file of them, or traces cannot be sent.
    """
    from octavo.server.keys import KeyRing, make_key
    from octavo.server.patient_http import patient_http
    from octavo.server.tls import check_tls
    from octavo.server.tracing import check_export

    certificate, key = options.pop("ssl_certfile"), options.pop("ssl_keyfile")
    check_tls(certificate, key)
    tls = {} if certificate is None else {"ssl_certfile": certificate, "ssl_keyfile": key}
    http = patient_http(options.pop("receive_timeout"), options.pop("send_timeout"))
    server = {name: options.pop(name) for name in _OF_THE_SERVER}
    _check_api_keys(server["api_keys"])
    # Read now, so that what is wrong is told before the model is loaded.
    KeyRing([make_key("", key) for key in server["api_keys"]], server["api_key_file"])
    if server["otlp_endpoint"] is not None:
        check_export(server["otlp_endpoint"])
    return Operating(server=server, uvicorn={"http": http, **tls}, log_format=options.pop("log_format"))


def _check_api_keys(keys: Sequence[str]) -> None:
    """A key that is empty, by a variable that was not filled, must not open the server to everybody."""
    from octavo.server.keys import check_key

    for key in keys:
        check_key(key, "--api-key")
    if not keys and API_KEY in os.environ:
        check_key(os.environ[API_KEY].strip(), API_KEY)
