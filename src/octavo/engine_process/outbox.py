"""What goes out: messages of the loop, and a pulse that goes on when the loop stands still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import zmq

from octavo.client.wire import FromEngine, News, encode
from octavo.engine_process.meter import Meter

PULSE_SECONDS = 0.5


class Outbox:
    """A socket that several threads may send with. A context manager, which closes it."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._lock = threading.Lock()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._socket.close()

    def send(self, message: FromEngine) -> None:
        """Blocks while whoever reads lags far behind: to compute more for one who does not read is of no use."""
        data = encode(message)
        with self._lock:
            self._socket.send(data)


@contextlib.contextmanager
def pulse(outbox: Outbox, meter: Meter) -> Iterator[None]:
    """Send snapshots of the load meanwhile, from a thread of their own: also when a step hangs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(PULSE_SECONDS):
            outbox.send(News(load=meter.snapshot()))

    thread = threading.Thread(target=beat, name="octavo-pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
