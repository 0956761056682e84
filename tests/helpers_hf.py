"""Small Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}
"""A ``config.json`` with all that must be there."""


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_folder(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """A model folder with ``TINY``, changed by ``config`` (None becomes null), and ``tensors``."""
    write_json(folder / "config.json", TINY | config)
    save_file(tensors or {"a.weight": torch.arange(6.0).reshape(2, 3)}, folder / "model.safetensors")
    return folder
