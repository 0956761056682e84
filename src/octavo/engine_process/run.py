"""From what is to be run to a loop that runs: build the engine, open the sockets, say that it is ready."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
import zmq

from octavo.build_engine import build_engine
from octavo.client.verbs import EngineInfo
from octavo.client.wire import Limits, Loading, Ready, Start
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.engine_process.door import Door
from octavo.engine_process.inbox import Inbox
from octavo.engine_process.loop import EngineLoop
from octavo.engine_process.meter import Meter
from octavo.engine_process.outbox import Outbox, pulse
from octavo.engine_process.pace import Pace, choose_interval
from octavo.execution.build import choose_dtype
from octavo.version import __version__
from octavo.weights.source import resolve

UNREAD_MESSAGES = 1000
"""Messages that may lie unread on each side before the engine waits for their reader: some ten seconds of steps."""

LINGER_MS = 1000
"""How long the last messages may take to leave."""

SWITCH_SECONDS = 0.001
"""How long the inbox may keep the interpreter from the thread that steps, which has just got its tokens."""


def run(start: Start, folder: str) -> None:
    """Serve an engine, at sockets in ``folder``, until it is stopped. Raises what keeps it from starting or ends it."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with (
        _context() as context,
        Outbox(_bound(context, zmq.PUSH, folder, "news")) as outbox,
        Inbox(_bound(context, zmq.PULL, folder, "requests")) as inbox,
    ):
        config = locate(start.config)
        engine = build_engine(config, sys.stderr.isatty(), lambda phase: outbox.send(Loading(phase)), serving=True)
        try:
            inbox.start(engine.encode)
            _serve(engine, inbox, outbox, describe(engine, start.config, config), start.limits)
        finally:
            engine.shutdown()


@contextlib.contextmanager
def _context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """Ends when all messages have left; the sockets are closed by those who use them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield context
    finally:
        context.term()


def _bound(context: zmq.Context[zmq.Socket[bytes]], kind: int, folder: str, name: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = LINGER_MS
    socket.set_hwm(UNREAD_MESSAGES if kind == zmq.PUSH else 0)
    socket.bind(f"ipc://{folder}/{name}")
    return socket


def _serve(engine: Engine, inbox: Inbox, outbox: Outbox, info: EngineInfo, limits: Limits) -> None:
    door = Door(limits)
    meter = Meter(engine, door)
    pace = Pace(engine, choose_interval(limits.stream_interval_ms, torch.device(engine.config.device).type))
    outbox.send(Ready(info))
    with pulse(outbox, meter):
        EngineLoop(engine, inbox, outbox.send, door, meter, pace).run()


def locate(config: EngineConfig) -> EngineConfig:
    """The configuration with places on disk for the names of the model and the tokenizer."""
    progress = sys.stderr.isatty()
    path = resolve(config.model, revision=config.revision, progress=progress)
    tokenizer = config.tokenizer and str(resolve(config.tokenizer, revision=config.revision, progress=progress))
    return replace(config, model=str(path), tokenizer=tokenizer, revision=None)


def describe(engine: Engine, asked: EngineConfig, located: EngineConfig) -> EngineInfo:
    """What callers are told of an engine, once. ``asked`` has names where ``located`` has places."""
    device = torch.device(engine.config.device)
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    scheduler, ledger = engine.scheduler, engine.ledger
    return EngineInfo(
        model=asked.model,
        model_path=located.model,
        version=__version__,
        vocab_size=engine.model_config.vocab_size,
        token_limit=scheduler.token_limit,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        num_blocks=ledger.num_blocks,
        block_size=ledger.block_size,
        dtype=choose_dtype(asked.dtype, engine.model_config.dtype, device),
        device=f"{device}{name}",
        generation=engine.generation,
        ledger=(ledger.describe(),),
        max_loras=engine.config.lora_places,
        tokenizer_path="" if engine.tokenizer is None else located.tokenizer or located.model,
        scheduling_policy=engine.config.scheduling_policy,
    )
