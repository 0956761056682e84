"""From a model's name to an engine: find the model, load it, size the cache, and join the rooms."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.grammar.grammars import Grammars
from octavo.text.tokenizer import Tokenizer


def build_engine(
    config: EngineConfig,
    progress: bool = True,
    on_phase: Callable[[str], None] = lambda name: None,
    *,
    serving: bool = False,
) -> Engine:
    """An engine that is ready for its first request.

    Args:
        on_phase: gets each part's name when it is done.
        serving: many will ask at any time, so none may hold up the others: steps are short, and what the first form
            (`StructuredOutputs`) needs is made beside the loading.

    Raises:
        ModelError: the model cannot be found or loaded. OutOfMemoryError: it, or the cache, does not fit.
    """
    from octavo.execution.build import build_runner, choose_device
    from octavo.weights.open import open_checkpoint
    from octavo.weights.source import resolve

    config = config.on(choose_device(config.device), serving=serving)
    path = resolve(config.model, revision=config.revision, progress=progress)
    checkpoint = open_checkpoint(path, weights=config.load_format != "dummy")
    on_phase("model_opened")
    tokenizer = find_tokenizer(config, path, progress)
    on_phase("tokenizer_loaded")
    grammars = Grammars(tokenizer, checkpoint.config.vocab_size)
    if serving:
        grammars.warm_up()
    try:
        runner, ledger = build_runner(config, checkpoint, progress, on_phase)
    except BaseException:
        grammars.stop()
        raise
    engine = Engine(config, checkpoint.config, runner, ledger, tokenizer, checkpoint.generation.as_dict(), grammars)
    # What there is now (modules, code, the model) stays: the garbage collector, which would look at all of it every few
    # hundred steps for some milliseconds, need not see it until `shutdown`.
    gc.collect()
    gc.freeze()
    on_phase("ready")
    return engine


def find_tokenizer(config: EngineConfig, path: Path, progress: bool) -> Tokenizer | None:
    """The tokenizer that was asked for, or the model's own, or None if it has none."""
    from octavo.text.tokenizer import has_tokenizer, load_tokenizer
    from octavo.weights.source import resolve

    if config.tokenizer is not None:
        return load_tokenizer(resolve(config.tokenizer, revision=config.revision, progress=progress))
    return load_tokenizer(path) if has_tokenizer(path) else None
