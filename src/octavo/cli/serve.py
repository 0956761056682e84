"""``octavo serve``: an OpenAI-compatible server."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import click

from octavo.cli.operation_options import SECONDS, operation_options, split_operation_options
from octavo.cli.options import (
    check_adapters,
    engine_options,
    lora_option,
    read_text_file,
    split_engine_options,
    with_room_for,
)
from octavo.config import EngineConfig
from octavo.errors import UsageError

log = logging.getLogger(__name__)

MAX_QUEUE = 4096


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--served-model-name", "names", multiple=True, metavar="NAME", help="In place of MODEL; several may be.")
@click.option("--chat-template", metavar="FILE", help="A Jinja chat template instead of the model's own.")
@click.option("--trust-request-chat-template", is_flag=True, help="Let requests bring a template.")
@click.option("--tool-call-parser", metavar="FORMAT", default="auto", help="How the model writes tool calls; or none.")
@click.option("--reasoning-parser", metavar="FORMAT", default="auto", help="How it writes reasoning; or none.")
@click.option("--allow-lora-loading", is_flag=True, help="Let requests load LoRA adapters from this machine's disk.")
@click.option(
    "--max-queue", type=click.IntRange(0), default=MAX_QUEUE, show_default=True, help="Most requests that wait."
)
@click.option("--max-queue-tokens", type=click.IntRange(1), metavar="N", help="Most tokens of requests that wait.")
@click.option(
    *("--stream-interval-ms", "stream_interval_ms"),
    type=click.FloatRange(0),
    metavar="MS",
    help="How often streams are sent new tokens; 0: each at once. Default: 0, on a CPU 3 for each stream, up to 200.",
)
@click.option("--drain", type=SECONDS, default=30.0, show_default=True, help="Seconds to finish in when told to end.")
@lora_option
@operation_options
@engine_options
def serve(
    model: str,
    host: str,
    port: int,
    names: tuple[str, ...],
    chat_template: str | None,
    trust_request_chat_template: bool,
    tool_call_parser: str,
    reasoning_parser: str,
    allow_lora_loading: bool,
    max_queue: int,
    max_queue_tokens: int | None,
    stream_interval_ms: float | None,
    drain: float,
    loras: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Serve MODEL to clients of OpenAI's API.

    Ctrl-C and SIGTERM let requests finish; a second Ctrl-C does not. Exit code 1: the engine has died.
    """
    given = with_room_for(loras, split_engine_options(options), allow_lora_loading)
    config = EngineConfig.from_kwargs(model, **given)
    if "" in names:  # a variable that was not filled
        raise UsageError("--served-model-name is empty; accepted: a name")
    check_adapters(loras, names or (model,))
    template = None if chat_template is None else read_text_file("the chat template", chat_template)
    operating = split_operation_options(options)

    import uvloop

    from octavo.client.wire import Limits
    from octavo.server.logs import logging_to
    from octavo.server.options import ServerOptions
    from octavo.server.serve import Serving, bind
    from octavo.server.serve import serve as run
    from octavo.text.output.detect import output_format

    output_format(None, tool_call_parser, reasoning_parser)  # a wrong name is told before the model is loaded
    serving = Serving(
        config=config,
        limits=Limits(max_queue, max_queue_tokens, stream_interval_ms),
        options=ServerOptions(
            served_model_names=names,
            chat_template=template,
            trust_request_chat_template=trust_request_chat_template,
            tool_call_parser=tool_call_parser,
            reasoning_parser=reasoning_parser,
            allow_lora_loading=allow_lora_loading,
            **operating.server,
        ),
        uvicorn=operating.uvicorn,
        loras=loras,
        drain=drain,
    )
    say = _say if operating.log_format == "text" else log.info  # a program reads lines of one form
    with bind(host, port) as listener, logging_to(style=operating.log_format):
        uvloop.run(run(serving, listener, say))


def _say(line: str) -> None:
    """Tell whoever reads standard error; where that is a file on a full disk the line is lost, and nothing else."""
    with suppress(OSError):
        click.echo(line, err=True)
