"""Which tensor of a GGUF file a model's tensors become: llama.cpp's names, and what its converter changes in them.

Some matrices are turned, norms of Gemma have 1 added to them, rows of queries and keys may have another order, and the
matrices of a layer's experts are one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.config import ModelConfig
from octavo.errors import ModelError
from octavo.models import gemma, gpt2, mixtral
from octavo.models.tensors import renamed
from octavo.weights.checkpoint import ALL, LazyTensor
from octavo.weights.gguf import PERMUTED
from octavo.weights.gguf_names import EXPERT_NAMES, LAYER_NAMES, MODEL_NAMES, ONE_PLUS, OTHER_NAMES

_RENAMES: Mapping[str, Mapping[str, str]] = {
    "GPT2LMHeadModel": {**gpt2.NAMES, ".c_attn.": ".qkv_proj."},
    "MixtralForCausalLM": mixtral.NAMES,
    "Gemma3ForCausalLM": gemma.NAMES,
    "Gemma3ForConditionalGeneration": gemma.NAMES,
}
"""Architecture -> what its checkpoints call otherwise than the tables of names do."""

_LEFT_OUT = {"GPT2LMHeadModel": gpt2.MASKS}
"""Architecture -> how names end of what is not written."""

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a GGUF file, and what it is made of.

    Attributes:
        name: GGUF's.
        parts: the tensors that lie one behind the other in it.
        experts: whether these are matrices of all experts, with a dimension of their own.
        heads: over how many heads rows have another order, or None.
    """

    name: str
    parts: tuple[LazyTensor, ...]
    experts: bool = False
    heads: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.parts[0].shape)
        return (len(self.parts), *shape) if self.experts else shape


class Changed(LazyTensor):
    """A tensor as llama.cpp wants its numbers: turned, or with 1 added."""

    def __init__(self, tensor: LazyTensor, *, turned: bool, plus_one: bool) -> None:
        self.name, self.kind, self.nbytes = tensor.name, tensor.kind, tensor.nbytes
        self.shape = tensor.shape[::-1] if turned else tensor.shape
        self._tensor, self._turned, self._plus_one = tensor, turned, plus_one

    def read(self, dtype: torch.dtype, rows: slice = ALL) -> Tensor:
        if self._turned:
            return self._tensor.read(dtype).T[rows].contiguous()
        if self._plus_one:
            return (self._tensor.read(torch.float32, rows) + 1).to(dtype)
        return self._tensor.read(dtype, rows)

    def release(self, rows: slice = ALL) -> None:
        self._tensor.release(ALL if self._turned else rows)


def stored_tensors(config: ModelConfig, architecture: str, tensors: Iterable[LazyTensor]) -> Iterator[Stored]:
    """The tensors of the file. ``architecture``: GGUF's name of it.

    Raises:
        ModelError: a tensor has no name in GGUF, or the matrix of an expert is missing.
    """
    stacks: dict[str, dict[int, LazyTensor]] = {}
    for tensor in tensors:
        name = _own_name(config, tensor.name)
        if name is None:
            continue
        if (match := _EXPERT.fullmatch(name)) is not None:
            stacks.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
        else:
            changed = _changed(config, architecture, name, tensor)
            yield Stored(gguf_name(name, architecture), (changed,), heads=_heads(config, architecture, name))
    for stack, parts in stacks.items():
        yield _stacked(config, stack, parts)


def gguf_name(name: str, architecture: str = "llama") -> str:
    """``model.layers.0.self_attn.q_proj.weight`` -> ``blk.0.attn_q.weight``. Raises ``ModelError`` for another name."""
    parts = {ours: theirs for theirs, ours in (LAYER_NAMES | OTHER_NAMES.get(architecture, {})).items()}
    once = {ours: theirs for theirs, ours in MODEL_NAMES.items()}
    stem, _, suffix = name.rpartition(".")
    if stem in once:
        return f"{once[stem]}.{suffix}"
    match stem.split(".", 3):
        case ["model", "layers", index, part] if part in parts:
            return f"blk.{index}.{parts[part]}.{suffix}"
    raise ModelError(f"the tensor {name!r:.120} has no name in GGUF")


def _own_name(config: ModelConfig, name: str) -> str | None:
    """The name that the tables have; None for what is not written."""
    left_out = _LEFT_OUT.get(config.architecture, ())
    if name.endswith(left_out) or (config.architecture.startswith("Gemma3") and name.startswith(gemma.SIGHT)):
        return None
    own = renamed(name, _RENAMES.get(config.architecture, {}))
    return None if own == "lm_head.weight" and config.tie_word_embeddings else own


def _changed(config: ModelConfig, architecture: str, name: str, tensor: LazyTensor) -> LazyTensor:
    turned = config.architecture == "GPT2LMHeadModel" and gpt2.is_turned(tensor.name)
    plus_one = architecture in ONE_PLUS and name.endswith("norm.weight")
    return Changed(tensor, turned=turned, plus_one=plus_one) if turned or plus_one else tensor


def _heads(config: ModelConfig, architecture: str, name: str) -> int | None:
    projection = name.rpartition(".")[0]
    if not projection.endswith(PERMUTED.get(architecture, ())):
        return None
    return config.num_heads if projection.endswith("q_proj") else config.num_kv_heads


def _stacked(config: ModelConfig, stack: str, parts: Mapping[int, LazyTensor]) -> Stored:
    count = 0 if config.experts is None else config.experts.count
    theirs = {ours: name for name, ours in EXPERT_NAMES.items()}
    _, _, index, _, _, part = stack.split(".")
    if part not in theirs or sorted(parts) != list(range(count)):
        raise ModelError(f"{stack} has {len(parts)} experts' matrices; those of {count} were expected")
    if len({tuple(tensor.shape) for tensor in parts.values()}) > 1:
        raise ModelError(f"{stack} has experts of several shapes; one was expected")
    return Stored(f"blk.{index}.{theirs[part]}.weight", tuple(parts[e] for e in range(count)), experts=True)
