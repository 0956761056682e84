"""A new model's weights: those that were packed before from the cache, all others from the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from octavo.execution.weight_cache import WeightCache
from octavo.models.decoder import DecoderModel
from octavo.models.given import give_weights, packed_weights
from octavo.models.loading import load_weights
from octavo.weights.checkpoint import LazyTensor


def load_and_pack(
    model: DecoderModel, tensors: Sequence[LazyTensor], cache: WeightCache | None, progress: bool
) -> None:
    """Fill and pack all weights of ``model``. What took work is kept for the next time.

    Raises:
        ModelError: the checkpoint's tensors are not those of the model.
    """
    given = cache is not None and _give(model, cache)
    _load(model, tensors, progress and not given)
    if cache is not None and not given:
        cache.store(packed_weights(model))


def _give(model: DecoderModel, cache: WeightCache) -> bool:
    """Whether the cache has the model's weights, which it then has."""
    found = cache.load()
    if found is None:
        return False
    try:
        give_weights(model, found)
    except ValueError:  # the checkpoint has become another one, and looks the same
        return False
    return True


def _load(model: DecoderModel, tensors: Sequence[LazyTensor], progress: bool) -> None:
    total = sum(tensor.nbytes for tensor in tensors)
    bar = tqdm(
        total=total,
        desc="loading",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
        disable=not progress,
    )
    with bar:
        load_weights(model, tensors, bar.update, pack=True)
