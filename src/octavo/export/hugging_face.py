"""A Hugging Face folder: safetensors files, ``config.json`` and the tokenizer's files; quantized matrices in the
layout of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ModelError, UsageError
from octavo.export import compressed_tensors
from octavo.export.hf_config import config_json, generation_json
from octavo.export.hf_tokenizer import write_tokenizer
from octavo.export.safetensors_file import Item, Slot, write_folder
from octavo.export.sources import Source
from octavo.kernels.reference.quantized import dequantize
from octavo.quantization.schemes import GROUPS, Scheme, scheme
from octavo.weights.checkpoint import LazyTensor

LINEAR = ("_proj.weight", ".c_fc.weight", ".w1.weight", ".w2.weight", ".w3.weight")
"""How the names of the layers' matrices end, also of Mixtral's experts: what is quantized. Embeddings, heads and
routers stay as they are.
"""

TRANSPOSED = ("GPT2LMHeadModel",)
"""Architectures whose matrices are not those of linear layers, though they have such names."""

MORE_WHILE_LOADING = (
    "all matrices have 4 bits, which costs a small model more than int4 does while loading or in GGUF: there queries, "
    "keys, values and down projections have 8"
)

ALWAYS_PLAIN = ("embed_tokens.", "lm_head.", ".gate.")
"""In the names of embeddings, heads and routers."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """A scheme fitted to a model: ``group`` is the same for all its matrices; None: no groups.

    The layout could have several schemes, as a small model's int4 wants (`Scheme.for_sensitive`); but transformers 5.23
    takes the first for all dense matrices when it expands them, which is how it reads int4 with zero points.
    """

    scheme: Scheme
    group: int | None

    @property
    def kind(self) -> str:
        return self.scheme.name if self.group is None else f"{self.scheme.kind} g{self.group}"


def write(source: Source, folder: Path, quantize: str | None, max_shard_size: int) -> None:
    """Write the whole folder, which must not exist.

    Raises:
        UsageError: there is no such scheme. ModelError: it, or the configuration, does not fit the model.
    """
    found = list(source.tensors())
    if quantize is not None:
        _check_layout(source.checkpoint.config.architecture)
    hidden_size = source.checkpoint.config.hidden_size
    how = None if quantize is None else fit(scheme(quantize).fitted(hidden_size), found)
    # The head even where it is tied and no tensor of its own: transformers makes a linear layer of it all the same.
    ignore = sorted({"lm_head", *(t.name.removesuffix(".weight") for t in found if _is_left_out(t))})
    quantization = None if how is None else compressed_tensors.config(how.scheme, how.group, ignore)
    if how is not None and how.scheme.for_sensitive is not how.scheme:
        source.report.notes.append(MORE_WHILE_LOADING)
    if how is not None and (plain := [tensor.name for tensor in found if _may_be_missed(tensor)]):
        source.report.notes.append(f"not quantized, as their names do not end in {LINEAR[0]}: {_some(plain)}")
    folder.mkdir()
    write_json(folder / "config.json", config_json(source.checkpoint, source.dtype, quantization))
    generation = generation_json(source.checkpoint)
    if generation:
        write_json(folder / "generation_config.json", generation)
    source.report.notes += write_tokenizer(source.tokenizer, folder)
    write_folder(folder, [_item(source, tensor, how) for tensor in found], max_shard_size)


def fit(wanted: Scheme, tensors: Sequence[LazyTensor]) -> Quantization:
    """The scheme with the largest group, up to its own, that divides the inputs of all matrices; of int8 without
    groups if there is none.
    """
    inputs = {tensor.shape[1] for tensor in tensors if is_linear(tensor)}
    if not inputs:
        raise ModelError(f"no tensor's name ends in {LINEAR[0]}: nothing of this model can be quantized")
    if wanted.group is None or wanted.kind == "fp8":
        return Quantization(wanted, wanted.group)
    for group in GROUPS:
        if group <= wanted.group and all(k % group == 0 for k in inputs):
            return Quantization(replace(wanted, group=group), group)
    if wanted.kind == "int8":
        return Quantization(replace(wanted, group=None), None)
    sizes = ", ".join(map(str, sorted(inputs)))
    raise UsageError(f"{wanted.name} needs matrices with a multiple of {GROUPS[-1]} inputs; these have {sizes}")


def is_linear(tensor: LazyTensor) -> bool:
    return len(tensor.shape) == 2 and tensor.name.endswith(LINEAR)


def _is_left_out(tensor: LazyTensor) -> bool:
    """A matrix that may be a linear layer, and is not quantized."""
    return len(tensor.shape) == 2 and tensor.name.endswith(".weight") and not is_linear(tensor)


def _check_layout(architecture: str) -> None:
    if architecture in TRANSPOSED:
        raise ModelError(
            f"{architecture} keeps its matrices as [inputs, outputs], which compressed-tensors does not know;"
            " accepted: no --quantize"
        )


def _may_be_missed(tensor: LazyTensor) -> bool:
    """A matrix of a layer, or a stack of them, that stays plain, and is not one that always does."""
    return len(tensor.shape) > 1 and not is_linear(tensor) and not any(part in tensor.name for part in ALWAYS_PLAIN)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _item(source: Source, tensor: LazyTensor, how: Quantization | None) -> Item:
    if how is None or not is_linear(tensor):
        slot = Slot(tensor.name, source.dtype, tuple(tensor.shape))
        return Item((slot,), lambda: [source.plain(tensor, source.dtype)])
    slots = compressed_tensors.slots(tensor.name, tensor.shape, how.scheme, how.group, source.dtype)
    return Item(tuple(slots), partial(_quantized, source, tensor, how))


def _quantized(source: Source, tensor: LazyTensor, how: Quantization) -> list[Tensor]:
    weight = tensor.read(torch.float32)
    try:
        packed = compressed_tensors.round_scales(weight, how.scheme, source.dtype)
    except ModelError as error:
        raise ModelError(f"{tensor.name}: {error}") from None
    stored = compressed_tensors.tensors(packed, how.scheme, source.dtype)
    nbytes = sum(part.nbytes for part in stored)
    source.compare(tensor, how.kind, nbytes, weight, dequantize(packed, torch.float32))
    return stored


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
