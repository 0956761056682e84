"""Small models to export, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

from helpers_models import VOCAB, make_tiny
from octavo.export.export import ExportOptions, export_model
from octavo.export.report import ExportReport
from octavo.weights.open import open_checkpoint

IDS = torch.tensor([[1, 17, 93, 4, 4, 120, 60, 33, 2, 8, 19]])


def export(model: Path, out: Path, **options: Any) -> ExportReport:
    return export_model(open_checkpoint(model), out, ExportOptions(**options))


def make_blocky(folder: Path, **options: Any) -> tuple[Any, Path]:
    """A random llama whose rows are of whole blocks of 32, as transformers has it; and its folder."""
    import helpers_models

    config = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_implementation": "eager",
        **options,
    }
    helpers_models.TINY["blocky"] = LlamaConfig(**config)
    try:
        return make_tiny("blocky", folder)
    finally:
        del helpers_models.TINY["blocky"]


def weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a model in float32, as Octavo reads them."""
    return {tensor.name: tensor.read(torch.float32).clone() for tensor in open_checkpoint(path).tensors()}


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(IDS).logits.float()
    return found


def matrices(report: ExportReport) -> Iterator[Any]:
    """The entries of a report that are about matrices of layers."""
    return (tensor for tensor in report.tensors if tensor.name.endswith("_proj.weight"))


def relative_rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().mean().sqrt() / b.double().square().mean().sqrt())


def unpacked(words: np.ndarray[Any, Any], bits: int, columns: int) -> np.ndarray[Any, Any]:
    """Integers of ``bits`` out of int32 words, the first in the lowest bits, one by one."""
    per_word = 32 // bits
    out = np.empty((len(words), columns), np.int64)
    for column in range(columns):
        word = words[:, column // per_word].astype(np.int64) & 0xFFFFFFFF
        out[:, column] = word >> (bits * (column % per_word)) & ((1 << bits) - 1)
    return out
