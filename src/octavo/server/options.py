"""How a server was asked to behave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What does not change while the server runs.

    Attributes:
        served_model_names: names under which requests may ask for the model; answers carry the one that was asked for,
            and the first one if none was. Empty: the engine's name of the model.
        chat_template: in place of the model's own, as text.
        trust_request_chat_template: let a request bring its own; it is a program that runs here, in a sandbox.
        allow_lora_loading: let requests load adapters; they name a path on this machine.
        tool_call_parser, reasoning_parser: names of formats (ours or vLLM's) in which the model writes; "auto": as its
            chat template says; "none": everything is content.
        text_threads: threads that tokenize and render chats beside the event loop.
        stream_patience: seconds in which an error of a streamed request still becomes an error status; then the
            stream's head is sent.
        keep_alive: seconds after which a silent stream gets a comment (Anthropic's: a ping), so that nobody on the way
            takes it for dead.
        api_keys: keys that are accepted. Neither these nor a file: everybody is let in.
        api_key_file: lines of ``name:key [priority=N] [max_requests=N]``, read again when it changes.
        max_body_bytes: the largest body of a request.
        max_timeout: the longest that a request may take, in seconds; None: as long as it likes.
        stall_seconds: so long may work wait without a step before ``/health`` calls for a restart.
        cors_origins: web pages of these origins may send requests; "*" is all.
        metrics_prefix: "octavo", or "vllm" for dashboards that know vLLM.
        log_texts: write prompts and answers into the log.
        otlp_endpoint: a collector's address, to which traces go; None: there are none.
        debug_routes: ``/debug/check`` and ``/debug/reset_prefix_cache``, for tests and operators.
    """

    served_model_names: tuple[str, ...] = ()
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    allow_lora_loading: bool = False
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    text_threads: int = 4
    stream_patience: float = 2.0
    keep_alive: float = 15.0
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    max_body_bytes: int = 32 << 20
    max_timeout: float | None = None
    stall_seconds: float = 30.0
    cors_origins: tuple[str, ...] = ()
    metrics_prefix: str = "octavo"
    log_texts: bool = False
    otlp_endpoint: str | None = None
    debug_routes: bool = False
