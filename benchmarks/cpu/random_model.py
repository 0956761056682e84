"""Write a folder with the config of a known model and random weights, to time shapes that are not at hand.

    python benchmarks/cpu/random_model.py qwen2.5-0.5b FOLDER
    octavo export FOLDER FILE.gguf --quantize q8_0

The config alone is enough for ``load_format="dummy"``; with ``--weights`` there are bfloat16 safetensors, too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
}
SPREAD = 0.02
"""Standard deviation of the weights, as models are initialised."""


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of all tensors of a checkpoint, by their names in Hugging Face's format."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config["model_type"] == "qwen2":
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    layers = range(config["num_hidden_layers"])
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        **{f"model.layers.{i}.{name}": shape for i in layers for name, shape in layer.items()},
    }


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Norms are ones."""
    weight = torch.ones(shape) if name.endswith("norm.weight") else torch.randn(shape) * SPREAD
    return weight.bfloat16()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", action="store_true", help="write random weights, too")
    args = parser.parse_args()
    config = SHAPES[args.shape]
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "config.json").write_text(json.dumps(config, indent=1))
    if args.weights:
        torch.manual_seed(0)
        tensors = {name: random_tensor(name, shape) for name, shape in tensor_shapes(config).items()}
        save_file(tensors, args.folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
