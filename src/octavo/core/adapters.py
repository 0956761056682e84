"""Which LoRA adapters are on the device.

There are a few places, numbered from 1 on; 0 stands for no adapter. A request that runs holds its adapter's place, and
so several may hold one. A place that nobody holds keeps its adapter until another one needs it: those that were let go
first are replaced first (LRU).

A place may be given to another adapter as soon as nobody holds it, though a step in flight still reads what is there:
the new adapter is copied by the step that first uses it, and steps run in the order of their planning.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

import msgspec


class Adapter(msgspec.Struct, frozen=True):
    """An adapter as the core knows it.

    Attributes:
        id: from 1 on; each time that one is loaded it gets a number which none had before.
        name: for people.
    """

    id: int
    name: str

    @property
    def salt(self) -> bytes:
        """What keys and values hang on, beside the tokens. No text that a caller gives as a salt begins like this."""
        return b"\xff" + self.id.to_bytes(8, "little")


class AdapterPlaces:
    """Who is in which of ``count`` places, and who holds it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reset()

    def reset(self) -> None:
        """All places are empty."""
        self._free = list(range(self.count, 0, -1))
        self._place_of: dict[int, int] = {}
        self._holders: Counter[int] = Counter()
        self._idle: OrderedDict[int, None] = OrderedDict()  # adapters that nobody holds, the first let go first

    def has_room(self, adapter: Adapter) -> bool:
        """Whether `take` would find a place."""
        return adapter.id in self._place_of or self.has_idle

    @property
    def has_idle(self) -> bool:
        """Whether there is a place that nobody holds."""
        return bool(self._free or self._idle)

    def take(self, adapter: Adapter) -> tuple[int, bool]:
        """Hold an adapter's place: its number, and whether the adapter must be copied there first."""
        new = adapter.id not in self._place_of
        if new:
            self._place_of[adapter.id] = self._empty_place()
        self._idle.pop(adapter.id, None)
        self._holders[adapter.id] += 1
        return self._place_of[adapter.id], new

    def release(self, adapter: Adapter) -> None:
        """One who held it leaves."""
        self._holders[adapter.id] -= 1
        if not self._holders[adapter.id]:
            del self._holders[adapter.id]
            self._idle[adapter.id] = None

    def forget(self, adapter_id: int) -> None:
        """Empty the place of an adapter that nobody holds, if it has one."""
        if adapter_id in self._idle:
            del self._idle[adapter_id]
            self._free.append(self._place_of.pop(adapter_id))

    def _empty_place(self) -> int:
        if self._free:
            return self._free.pop()
        oldest, _ = self._idle.popitem(last=False)
        return self._place_of.pop(oldest)

    def check(self, held: Iterable[tuple[Adapter, int]]) -> None:
        """Raise ``AssertionError`` unless ``held``, adapter and place of each request that runs, is what is known."""
        pairs = list(held)
        assert Counter(adapter.id for adapter, _ in pairs) == self._holders, "holders of adapters are miscounted"
        for adapter, place in pairs:
            assert self._place_of.get(adapter.id) == place, f"adapter {adapter.name!r} is not in place {place}"
        places = sorted([*self._free, *self._place_of.values()])
        assert places == list(range(1, self.count + 1)), f"places of adapters are lost or doubled: {places}"
        assert set(self._place_of) == set(self._holders) | set(self._idle), "an adapter is neither held nor idle"
