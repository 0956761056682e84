"""The child process of ``template_process``: renders Jinja templates under limits, and imports only Jinja.

The environment is that of Hugging Face's ``apply_chat_template``: immutable sandbox, trimmed blocks, loop
controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that leaves text as it is, and a ``generation``
tag.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

CPU_SECONDS = 2.0
MEMORY_BYTES = 1 << 30
MAX_OUTPUT_CHARACTERS = 16 << 20


class GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class RefusedError(TemplateError):
    """The template called ``raise_exception``: it does not accept these messages."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, but reaching for a forbidden attribute is an error at once, not an empty string."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__}")


def make_environment() -> ChatEnvironment:
    """The Jinja environment in which chat templates run."""
    environment = ChatEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise RefusedError(message)


def answer(request: dict[str, Any], compiled: Callable[[str], Template]) -> dict[str, str]:
    """Render one request; whatever goes wrong becomes one line under "error"."""
    try:
        text = compiled(request["template"]).render(**request["variables"])
        if len(text) <= MAX_OUTPUT_CHARACTERS:
            return {"text": text}
        return {"error": f"the chat template printed more than {MAX_OUTPUT_CHARACTERS} characters"}
    except Exception as error:
        return {"error": " ".join(_explain(error).split())[:400]}


def _explain(error: Exception) -> str:
    if isinstance(error, RefusedError):
        return f"the chat template does not accept these messages: {error}"
    if isinstance(error, SecurityError):
        return f"the chat template does what is not allowed: {error}"
    if isinstance(error, TemplateSyntaxError):
        return f"the chat template is malformed at line {error.lineno}: {error}"
    if isinstance(error, MemoryError):
        return f"the chat template needs more than {MEMORY_BYTES >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "the chat template nests too deeply"
    return f"the chat template fails on these messages: {error} ({type(error).__name__})"


def limit_memory() -> None:
    """Cap the address space, where the system can (not on macOS, where the time limit has to do)."""
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> None:
    """Answer lines until the input ends. The timer's signal ends the process, even amid C code."""
    limit_memory()
    compiled = lru_cache(maxsize=32)(make_environment().from_string)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        reply = json.dumps(answer(json.loads(line), compiled)).encode("ascii")
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
