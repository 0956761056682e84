"""Which requests run now, so that they can be aborted by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Running:
    """An HTTP request's share of the engine: whose it is, and the engine's ids of its prompts."""

    owner: str
    engine_ids: Sequence[str]


class Live:
    """Requests by the ids that their senders know: the answer's, and the ``X-Request-Id``."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[Running]] = {}

    def __len__(self) -> int:
        return len({id(running) for many in self._by_name.values() for running in many})

    @contextmanager
    def entered(self, names: Sequence[str], running: Running) -> Iterator[None]:
        """Known under ``names`` inside the block. Several requests may have the same ``X-Request-Id``."""
        for name in names:
            self._by_name.setdefault(name, []).append(running)
        try:
            yield
        finally:
            for name in names:
                self._leave(name, running)

    def find(self, name: str, owner: str) -> list[Running]:
        """Those of this name that ``owner`` has sent."""
        return [running for running in self._by_name.get(name, ()) if running.owner == owner]

    def _leave(self, name: str, running: Running) -> None:
        self._by_name[name].remove(running)
        if not self._by_name[name]:
            del self._by_name[name]
