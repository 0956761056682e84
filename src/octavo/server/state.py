"""What all routes share."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from starlette.requests import Request

from octavo.errors import RequestError
from octavo.openai.responses import Answered
from octavo.server.caller import caller_of
from octavo.server.forms import Forms
from octavo.server.live import Live
from octavo.server.names import Names
from octavo.server.observed import ObservedClient
from octavo.server.options import ServerOptions
from octavo.server.text_pool import TextPool
from octavo.text.output.detect import output_format
from octavo.text.output.formats import OutputFormat
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Server:
    """The parts of a server that live as long as it does.

    Attributes:
        format: how the model writes reasoning and tool calls.
        started: in seconds since 1970.
    """

    client: ObservedClient
    options: ServerOptions
    tokenizer: Tokenizer | None
    names: Names
    texts: TextPool
    forms: Forms
    live: Live
    format: OutputFormat
    started: int

    def answered(self, name: str, model: str, *, as_ids: bool = False) -> Answered:
        """Who answers, now. ``as_ids``: tokens are named by their ids, not their texts."""
        written = None if as_ids or self.tokenizer is None else self.tokenizer.token_bytes
        return Answered(name, int(time.time()), model, written)

    def need_tokenizer(self) -> Tokenizer:
        """Raises ``RequestError`` for a model that came without."""
        if self.tokenizer is None:
            raise RequestError("the model came without a tokenizer; accepted: prompts of token ids at /v1/completions")
        return self.tokenizer


def make_server(client: ObservedClient, options: ServerOptions, tokenizer: Tokenizer | None) -> Server:
    """Raises ``UsageError`` for an option that names what does not exist."""
    own = options.served_model_names or (client.info.model,)
    template = options.chat_template or (tokenizer.chat_template if tokenizer is not None else None)
    return Server(
        client,
        options,
        tokenizer,
        Names(own, client),
        TextPool(options.text_threads),
        Forms(tokenizer, client.info.vocab_size),
        Live(),
        output_format(template, options.tool_call_parser, options.reasoning_parser),
        int(time.time()),
    )


def server_of(request: Request) -> Server:
    """The `Server` of the application that a request came to. What is asked of its client is asked by the sender."""
    server: Server = request.app.state.server
    return replace(server, client=server.client.of(caller_of(request)))
