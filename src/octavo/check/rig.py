"""A loaded model on which engines with different options are set up one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from octavo.config import EngineConfig, ModelConfig
from octavo.engine import Engine
from octavo.execution.build import build_runner
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.memory import Ledger
from octavo.execution.release import release_unused
from octavo.execution.runner import Runner
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel
from octavo.weights.checkpoint import Checkpoint


@dataclass(slots=True)
class Rig:
    """A runner and all that an engine needs beside it. Engines share it, one at a time; each begins with an empty
    prefix cache.
    """

    config: EngineConfig
    model_config: ModelConfig
    runner: Runner | DeviceRunner
    ledger: Ledger

    @property
    def model(self) -> DecoderModel:
        return self.runner.model

    @contextmanager
    def engine(self, **changes: Any) -> Iterator[Engine]:
        """An engine with some options changed, of those that the scheduler and the executor heed."""
        engine = Engine(replace(self.config, **changes), self.model_config, self.runner, self.ledger, None)
        try:
            yield engine
        finally:
            engine.shutdown()


@contextmanager
def rig(
    config: EngineConfig, checkpoint: Checkpoint, *, ops: Ops | None = None, progress: bool = False
) -> Iterator[Rig]:
    """Load the model on ``ops`` (None: the device's own), and let go of it afterwards."""
    runner, ledger = build_runner(config, checkpoint, progress, ops=ops)
    loaded = Rig(config, checkpoint.config, runner, ledger)
    try:
        yield loaded
    finally:
        del loaded.runner, runner
        release_unused()
