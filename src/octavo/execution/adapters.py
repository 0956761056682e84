"""LoRA adapters that are loaded: in host memory under a number of their own, and some of them on the device.

The core decides which are on the device, in which place (`octavo.core.adapters`). A plan says what is to be copied
there before the step runs; steps that were planned earlier have read what was there by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.core.plan import AdapterLoad
from octavo.errors import ModelError
from octavo.layers.linear import AdaptedLinear
from octavo.models.adapters import AdapterLayers, AdapterPlacer
from octavo.models.decoder import DecoderModel
from octavo.weights.peft import read_adapter


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter in host memory; ``rank`` is the largest of its layers' ranks."""

    layers: AdapterLayers
    rank: int


class AdapterStore:
    """The adapters of one model, which was built with room for ``max_loras`` on the device."""

    def __init__(self, model: DecoderModel, max_loras: int) -> None:
        self.max_loras = max_loras
        self._model = model
        self._layers = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
        self._loaded: dict[int, AdapterLayers] = {}

    def read(self, path: Path) -> HostAdapter:
        """Read an adapter from disk. Takes its time, changes nothing, and may be called beside steps.

        Raises:
            ModelError: it is damaged, or does not suit the model.
        """
        adapter = read_adapter(path)
        wants = None if adapter.config.targets is None else adapter.config.wants
        try:
            return HostAdapter(AdapterPlacer(self._model).place(adapter.modules, wants), adapter.rank)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        except (RuntimeError, MemoryError) as error:  # torch's, where the host has no more memory, or none to pin
            why = next(iter(str(error).splitlines()), "no memory is left")
            raise ModelError(f"{path} does not fit into the host's memory: {why:.200}") from None

    def keep(self, adapter_id: int, adapter: HostAdapter) -> None:
        """Have an adapter at hand for steps to come. Between two steps."""
        self._loaded[adapter_id] = adapter.layers

    def remove(self, adapter_id: int) -> None:
        """Forget an adapter that no step to come uses."""
        del self._loaded[adapter_id]

    def load(self, loads: Sequence[AdapterLoad]) -> None:
        """Copy adapters to the device. The host does not wait."""
        for load in loads:
            own = self._loaded[load.adapter_id]
            for layer in self._layers:
                assert layer.lora is not None
                layer.lora.write(load.number, own.get(layer))
