"""From a checkpoint's tensors to a model's parameters, one at a time and each straight into its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.errors import ModelError, nearest
from octavo.layers.norm import RMSNorm
from octavo.layers.weight import Matrix, Place, Weight
from octavo.models.decoder import DecoderModel

DUMMY_STD = 0.02


class NamedTensor(Protocol):
    """What is needed of a tensor in a checkpoint: see ``octavo.weights.checkpoint.LazyTensor``."""

    name: str
    shape: tuple[int, ...]
    nbytes: int

    def read(self, dtype: torch.dtype) -> Tensor: ...


def load_weights(
    model: DecoderModel, tensors: Iterable[NamedTensor], progress: Callable[[int], None] | None = None
) -> None:
    """Fill all parameters of ``model``. ``progress`` is called with each tensor's bytes in the checkpoint.

    Raises ``ModelError`` for a tensor that is missing, unknown, there twice or of another shape than the
    configuration implies; the model is then of no use.
    """
    places = dict(model_places(model))
    missing = set(places)
    for tensor in tensors:
        if not _is_ballast(tensor.name, model.config):
            _check(tensor, places, missing, model.config)
            weight, place = places[tensor.name]
            weight.load(place, tensor.read(weight.dtype))
            missing.remove(tensor.name)
        if progress is not None:
            progress(tensor.nbytes)
    if missing:
        first, more = min(missing), len(missing) - 1
        others = f" and {more} more tensors are" if more else " is"
        raise ModelError(f"{first}{others} missing from the checkpoint ({_describe(model.config)})")


def model_places(model: nn.Module) -> Iterator[tuple[str, tuple[Weight, Place]]]:
    """Each name that a checkpoint must have, and where that tensor goes."""
    for path, weight in model.named_parameters():
        if not isinstance(weight, Weight):
            raise TypeError(f"{path} does not know its place in a checkpoint")
        module, _, leaf = path.rpartition(".")
        parent = module.rpartition(".")[0]
        for place in weight.places:
            yield f"{parent}.{place.module}.{leaf}" if place.module else path, (weight, place)


def pack_weights(model: nn.Module) -> None:
    """Bring every matrix into the form that the ops multiply with fastest. For when all weights are loaded."""
    for module in model.modules():
        if isinstance(module, Matrix):
            module.pack()


def init_dummy(model: nn.Module, seed: int) -> None:
    """Random weights, fast: norms are 1, others normal with standard deviation 0.02, in a long repeating
    pattern.
    """
    generator = torch.Generator().manual_seed(seed)
    # An odd length, so that no two rows of a matrix begin at the same place of the pattern.
    noise = torch.randn((1 << 20) + 7, generator=generator) * DUMMY_STD
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if isinstance(module, RMSNorm):
                weight.data.fill_(1)
            else:
                _tile(weight.data.view(-1), noise)
                noise = noise.roll(1)


def param_bytes(model: nn.Module) -> int:
    """Bytes of all weights on the device, packed ones and copies included; tied ones count once."""
    packed = [module.packed for module in model.modules() if isinstance(module, Matrix) and module.packed is not None]
    return sum(weight.nbytes for weight in {id(w): w for w in (*model.parameters(), *packed)}.values())


def _tile(target: Tensor, pattern: Tensor) -> None:
    for part in target.split(len(pattern)):
        part.copy_(pattern[: len(part)])


def _is_ballast(name: str, config: ModelConfig) -> bool:
    """Tensors that some checkpoints have and no model needs."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _check(
    tensor: NamedTensor, places: dict[str, tuple[Weight, Place]], missing: set[str], config: ModelConfig
) -> None:
    if tensor.name not in places:
        hint = nearest(tensor.name, places)
        raise ModelError(f"the checkpoint's {tensor.name} is not part of the model{hint} ({_describe(config)})")
    if tensor.name not in missing:
        raise ModelError(f"{tensor.name} is in the checkpoint twice; once was expected")
    wanted = places[tensor.name][1].shape
    if tuple(tensor.shape) != wanted:
        raise ModelError(
            f"{tensor.name} has shape {list(tensor.shape)} in the checkpoint; {list(wanted)} was expected"
            f" ({_describe(config)})"
        )


def _describe(config: ModelConfig) -> str:
    return (
        f"config: {config.architecture}, vocab_size {config.vocab_size}, hidden_size {config.hidden_size},"
        f" intermediate_size {config.intermediate_size}, {config.num_layers} layers, {config.num_heads} heads,"
        f" {config.num_kv_heads} key/value heads of {config.head_dim}"
    )
