"""The LoRA adapters of an engine: by name for callers, by number for the core, in the runner's memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from octavo.config import LOADED_PER_PLACE, EngineConfig
from octavo.core.adapters import Adapter
from octavo.core.scheduler import Scheduler
from octavo.errors import ModelError, RequestError
from octavo.execution.adapters import AdapterStore, HostAdapter
from octavo.lora import AdapterInfo, check_lora_name


@dataclass(frozen=True, slots=True)
class _Loaded:
    adapter: Adapter
    info: AdapterInfo


class Adapters:
    """What is loaded, at most ``max_cpu_loras`` of them. A name that is removed is free at once; the adapter goes when
    no request uses it any more.

    Args:
        store: None if the engine was built without room for adapters.
    """

    def __init__(self, store: AdapterStore | None, scheduler: Scheduler, config: EngineConfig) -> None:
        self._store, self._scheduler = store, scheduler
        self._limit = config.max_cpu_loras or LOADED_PER_PLACE * config.max_loras
        self._by_name: dict[str, _Loaded] = {}  # the one used longest ago comes first
        self._leaving: list[int] = []
        self._ids = itertools.count(1)

    def infos(self) -> list[AdapterInfo]:
        """Those that requests may ask for, by name."""
        return [self._by_name[name].info for name in sorted(self._by_name)]

    def find(self, name: str) -> Adapter:
        """The adapter of that name; ``RequestError`` if there is none."""
        self._require_store()
        if name not in self._by_name:
            loaded = ", ".join(sorted(self._by_name)) or "none"
            raise RequestError(f"there is no LoRA adapter {name!r:.80}; loaded: {loaded}")
        self._by_name[name] = self._by_name.pop(name)
        return self._by_name[name].adapter

    def check_room(self, name: str, *, replace_idle: bool = False) -> str | None:
        """Whether an adapter may be kept under ``name``; which one would have to go for it, if one would.

        Args:
            replace_idle: if it is full, the adapter that was asked for longest ago may go, of those that nothing uses.

        Raises:
            RequestError: the name is taken, or there are too many.
        """
        self._require_store()
        if check_lora_name(name) in self._by_name:
            raise RequestError(f"there is a LoRA adapter {name!r:.80} already; remove it first, or take another name")
        idle = self._first_idle() if replace_idle and self.full else None
        if self.full and idle is None:
            raise RequestError(
                f"max_cpu_loras={self._limit} adapters are loaded or still in use; remove one, or raise max_cpu_loras"
            )
        return idle

    def read(self, path: str) -> HostAdapter:
        """Read an adapter from disk, which may take seconds: in any thread, also while a step runs.

        Raises:
            RequestError: it is damaged or does not suit the model.
        """
        try:
            return self._require_store().read(Path(path))
        except ModelError as error:
            raise RequestError(str(error)) from None

    def keep(self, name: str, path: str, read: HostAdapter, *, replace_idle: bool = False) -> AdapterInfo:
        """Have an adapter that was read from ``path`` for requests to ask for. Quick; raises as `check_room` does."""
        idle = self.check_room(name, replace_idle=replace_idle)
        adapter, info = Adapter(next(self._ids), name), AdapterInfo(name, str(path), read.rank)
        self._require_store().keep(adapter.id, read)
        if idle is not None:
            self.remove(idle)
        self._by_name[name] = _Loaded(adapter, info)
        return info

    def remove(self, name: str) -> None:
        """No request may ask for it from now on; ``RequestError`` if there is none."""
        self._leaving.append(self.find(name).id)
        del self._by_name[name]
        self.drop_unused()

    def drop_unused(self) -> None:
        """Forget the removed ones that nothing uses any more."""
        if self._leaving:
            still = [i for i in self._leaving if self._scheduler.uses_adapter(i)]
            for adapter_id in set(self._leaving) - set(still):
                self._scheduler.batch.adapters.forget(adapter_id)
                self._require_store().remove(adapter_id)
            self._leaving = still

    @property
    def full(self) -> bool:
        """Whether no more can be loaded."""
        return len(self._by_name) + len(self._leaving) >= self._limit

    def _first_idle(self) -> str | None:
        """The adapter that was asked for longest ago, of those that nothing uses."""
        used = self._scheduler.uses_adapter
        return next((name for name, loaded in self._by_name.items() if not used(loaded.adapter.id)), None)

    def _require_store(self) -> AdapterStore:
        if self._store is None:
            raise RequestError("the engine was started without LoRA adapters; accepted with enable_lora=True")
        return self._store
