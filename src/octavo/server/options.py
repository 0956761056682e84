"""How a server was asked to behave."""

from __future__ import annotations

from dataclasses import dataclass


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
