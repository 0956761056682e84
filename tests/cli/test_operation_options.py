"""Operators' options of ``octavo serve``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from octavo.cli.operation_options import Operating, Origin, operation_options, split_operation_options
from octavo.errors import UsageError
from octavo.server.options import ServerOptions


def parse(*arguments: str, **environment: str) -> Operating:
    found: list[Operating] = []

    @click.command()
    @operation_options
    def command(**options: Any) -> None:
        found.append(split_operation_options(options))
        assert not options

    result = CliRunner().invoke(command, arguments, env=environment)
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return found[0]


def test_what_is_not_said_is_the_servers_default() -> None:
    given, default = parse(), ServerOptions()
    assert {name: getattr(default, name) for name in given.server} == given.server
    assert set(given.server) <= {field.name for field in fields(ServerOptions)}
    assert (given.log_format, set(given.uvicorn)) == ("text", {"http"})


def test_options(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:sk-1\n")
    keys = ["--api-key", "a", "--api-key", "b", "--api-key-file", str(file)]
    more = ["--max-body", "1M", "--max-timeout", "9", "--send-timeout", "3", "--receive-timeout", "4", "--debug-routes"]
    given = parse(*keys, *more, "--cors-origin", "*", "--metrics-prefix", "vllm", "--log-format", "json")
    options = ServerOptions(**given.server)
    assert (options.api_keys, options.api_key_file) == (("a", "b"), file)
    assert (options.max_body_bytes, options.max_timeout, options.cors_origins) == (1 << 20, 9.0, ("*",))
    assert (given.uvicorn["http"].send_timeout, given.uvicorn["http"].receive_timeout) == (3.0, 4.0)
    assert given.log_format == "json"


def test_a_key_of_the_environment() -> None:
    assert parse(OCTAVO_API_KEY="sk-1").server["api_keys"] == ("sk-1",)
    assert parse(OCTAVO_API_KEY="sk-1 sk-2").server["api_keys"] == ("sk-1", "sk-2")


@pytest.mark.parametrize(
    ("arguments", "variable"), [([], ""), ([], "  "), (["--api-key", ""], "sk-1"), (["--api-key", "two words"], "")]
)
def test_an_empty_key_opens_no_door(arguments: list[str], variable: str) -> None:
    """A variable that was not filled must not mean that everybody is let in."""
    with pytest.raises(UsageError, match=r"has a key that is empty or no word; accepted: 1 to 512 visible"):
        parse(*arguments, OCTAVO_API_KEY=variable)


@pytest.mark.parametrize("origin", ["*", "https://chat.example", "http://localhost:3000", "http://[::1]:8080"])
def test_an_origin_is_what_browsers_send(origin: str) -> None:
    assert parse("--cors-origin", origin).server["cors_origins"] == (origin,)


@pytest.mark.parametrize(
    "wrong",
    [
        "chat.example",
        "https://chat.example/",
        "https://Chat.example",
        "https://a.example,https://b.example",
        "https://*.example",
        "",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(wrong: str) -> None:
    with pytest.raises(click.BadParameter, match="accepted: https://HOST"):
        Origin().convert(wrong, None, None)


def test_a_certificate_alone_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--ssl-certfile with --ssl-keyfile"):
        parse("--ssl-certfile", str(tmp_path / "a"))


def test_a_wrong_file_of_keys_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(UsageError, match="cannot read the API keys"):
        parse("--api-key-file", str(file))
    file.write_text("alice sk-1\n")
    with pytest.raises(UsageError, match="line 1: accepted: name:key"):
        parse("--api-key-file", str(file))
    file.write_text("# none yet\n")
    with pytest.raises(UsageError, match="has no API key"):
        parse("--api-key-file", str(file))
    assert parse("--api-key", "a", "--api-key-file", str(file)).server["api_key_file"] == file


def test_a_collector_without_an_address_is_told_before_the_model_is_loaded() -> None:
    with pytest.raises(UsageError, match="'localhost:4318' is no collector's address"):
        parse("--otlp-endpoint", "localhost:4318")
