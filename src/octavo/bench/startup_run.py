"""The process that `octavo.bench.startup` times: start an engine, make one token, and say when each part is done."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.engine import Engine

Send = Callable[[dict[str, Any]], None]
PROMPT_LEN = 16
"""Tokens of the prompt, or fewer if the model takes no more."""


def main() -> None:
    """``startup_run {"model": …, …}``: the arguments of ``EngineConfig`` as JSON. Messages are JSON lines."""
    send = _channel()
    send({"phase": "python"})
    try:
        _start(json.loads(sys.argv[1]), send)
    except OctavoError as error:
        send({"error": str(error), "exit_code": error.exit_code})


def _channel() -> Send:
    """A way to the standard output that nothing else can write to: what libraries print goes to the standard error."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda message: print(json.dumps(message), file=pipe, flush=True)


def _start(arguments: dict[str, Any], send: Send) -> None:
    from importlib import import_module

    from octavo.bench.environment import describe_environment
    from octavo.build_engine import build_engine
    from octavo.config import EngineConfig

    import_module("octavo.execution.build")  # `build_engine` would import it
    send({"phase": "imports"})

    def done(name: str) -> None:
        _wait_for_gpu()
        send({"phase": name})

    engine = build_engine(EngineConfig.from_kwargs(**arguments), progress=False, on_phase=done)
    try:
        _first_token(engine)
        done("first_token")
        send({"environment": describe_environment(engine)})
    finally:
        engine.shutdown()


def _wait_for_gpu() -> None:
    """What was given to a GPU belongs to the part that gave it."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _first_token(engine: Engine) -> None:
    from octavo.sampling_params import SamplingParams

    length = min(PROMPT_LEN, engine.scheduler.token_limit - 1)
    token_ids = [i % engine.model_config.vocab_size for i in range(1, length + 1)]
    engine.add_request(token_ids, SamplingParams(max_tokens=1, ignore_eos=True))
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished and not output.outputs[0].token_ids:
                raise OctavoError(f"no token came: {output.outputs[0].stop_reason or output.outputs[0].finish_reason}")


if __name__ == "__main__":
    main()
