"""From a checkpoint's tensors to a model's parameters, one at a time and each straight into its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.errors import ModelError, nearest
from octavo.kernels import memory
from octavo.kernels.packed import Operand, PerExpert, StackedWeight
from octavo.layers.linear import AdaptedLinear
from octavo.layers.norm import Norm
from octavo.layers.weight import Matrix, Place, Weight
from octavo.models.decoder import DecoderModel
from octavo.models.tensors import NamedTensor

DUMMY_STD = 0.02
TRIM_AFTER = 1 << 24
"""Bytes of the checkpoint, after which what was freed meanwhile goes back to the system."""
PATTERN_SIZE = (1 << 20) + 7
"""Odd, so that no two rows of a matrix begin at the same place of the pattern."""


def load_weights(
    model: DecoderModel,
    tensors: Iterable[NamedTensor],
    progress: Callable[[int], None] | None = None,
    *,
    pack: bool = False,
) -> None:
    """Fill all parameters of ``model``, each matrix packed as its `Packing` says as soon as it is whole.

    Args:
        progress: called with each tensor's bytes in the checkpoint.
        pack: bring each matrix into the form that the ops multiply with fastest, too, as `pack_weights` does: so that
            only one of them is there twice, and that mostly before all others are there.

    Raises ``ModelError`` for a tensor that is missing, unknown, there twice or of another shape than the
    configuration implies; the model is then of no use.
    """
    slots = slots_by_name(model)
    missing, untrimmed = set(slots), 0
    for tensor in tensors:
        for own in model.own_tensors(tensor):
            if not _is_ballast(own.name, model.config):
                _check(own, slots, missing, model.config)
                for slot in slots[own.name]:
                    slot.fill(own, pack)
                missing.remove(own.name)
        tensor.release()
        untrimmed += tensor.nbytes
        if untrimmed >= TRIM_AFTER:
            memory.trim()
            untrimmed = 0
        if progress is not None:
            progress(tensor.nbytes)
    memory.trim()
    if missing:
        first, more = min(missing), len(missing) - 1
        others = f" and {more} more tensors are" if more else " is"
        raise ModelError(f"{first}{others} missing from the checkpoint ({_describe(model.config)})")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor of the checkpoint goes: to ``place`` of ``weight``, a parameter of ``module``."""

    module: nn.Module
    weight: Weight
    place: Place

    def fill(self, tensor: NamedTensor, pack: bool) -> None:
        """Load the tensor; ``pack``: if it is a matrix' last one, bring that into the ops' form."""
        if isinstance(self.module, Matrix) and self.weight is self.module.weight:
            self.module.fill(self.place, tensor)
            if pack and self.module.is_whole:
                self.module.pack()
        else:
            self.weight.fill(self.place, tensor)


def model_slots(model: nn.Module) -> Iterator[tuple[str, Slot]]:
    """Each name that a checkpoint must have, and where that tensor goes: a tied table's to two modules."""
    paths: dict[Weight, str] = {}
    for module_path, module in model.named_modules():
        for leaf, weight in module.named_parameters(recurse=False):
            if not isinstance(weight, Weight):
                raise TypeError(f"{module_path}.{leaf} does not know its place in a checkpoint")
            path = paths.setdefault(weight, f"{module_path}.{leaf}")
            for place in weight.places:
                yield _name(path, place), Slot(module, weight, place)


def _name(path: str, place: Place) -> str:
    """The checkpoint's name for what goes to a place of the parameter at ``path``."""
    module, _, leaf = path.rpartition(".")
    return f"{module.rpartition('.')[0]}.{place.module}.{leaf}" if place.module else path


def slots_by_name(model: nn.Module) -> dict[str, list[Slot]]:
    """Where the tensor of each name goes."""
    slots: dict[str, list[Slot]] = {}
    for name, slot in model_slots(model):
        slots.setdefault(name, []).append(slot)
    return slots


def pack_weights(model: nn.Module) -> None:
    """Bring every matrix into the form that the ops multiply with fastest. For when all weights are loaded."""
    for module in model.modules():
        if isinstance(module, Matrix):
            module.pack()


def init_dummy(model: nn.Module, seed: int) -> None:
    """Random weights, fast: norms are 1, others normal with standard deviation 0.02, in a long repeating pattern.

    What is to be quantized is made in its packed form, on the device, without the plain one.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(PATTERN_SIZE, generator=generator) * DUMMY_STD
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if isinstance(module, Norm):
                weight.data.fill_(1)
            elif isinstance(module, Matrix) and weight is module.weight:
                module.fill_random(noise)
            elif isinstance(weight, Weight):
                weight.fill_random(noise)
            noise = noise.roll(1)


def param_bytes(model: nn.Module) -> int:
    """Bytes of all weights on the device, packed ones and copies included; tied ones count once."""
    packed = [module.packed for module in model.modules() if isinstance(module, Matrix) and module.packed is not None]
    return sum(weight.nbytes for weight in {id(w): w for w in (*model.parameters(), *packed)}.values())


def weight_tensors(model: nn.Module) -> Iterator[Tensor]:
    """What large weights are made of; none of oneDNN's own tensors, whose memory nobody else sees."""
    packed = (module.packed for module in model.modules() if isinstance(module, Matrix) and module.packed is not None)
    tensors = (tensor for weight in (*model.parameters(), *packed) for tensor in _tensors(weight))
    return (tensor for tensor in tensors if tensor.layout is torch.strided and tensor.nbytes >= memory.SMALLEST)


def _tensors(weight: Operand) -> Iterable[Tensor]:
    match weight:
        case Tensor():
            return (weight,)
        case StackedWeight() | PerExpert():
            return (tensor for part in weight.parts for tensor in _tensors(part))
    return weight.tensors().values()


def lora_bytes(model: nn.Module) -> int:
    """Bytes of the room for LoRA adapters."""
    stacks = (module.lora for module in model.modules() if isinstance(module, AdaptedLinear))
    return sum(stack.nbytes for stack in stacks if stack is not None)


def _is_ballast(name: str, config: ModelConfig) -> bool:
    """Tensors that some checkpoints have and no model needs."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _check(tensor: NamedTensor, slots: dict[str, list[Slot]], missing: set[str], config: ModelConfig) -> None:
    if tensor.name not in slots:
        hint = nearest(tensor.name, slots)
        raise ModelError(f"the checkpoint's {tensor.name} is not part of the model{hint} ({_describe(config)})")
    if tensor.name not in missing:
        raise ModelError(f"{tensor.name} is in the checkpoint twice; once was expected")
    wanted = slots[tensor.name][0].place.shape
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
