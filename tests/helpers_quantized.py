"""Writes small quantized checkpoints, as AutoAWQ, GPTQModel, FP8 and compressed-tensors repositories have them.

By loops over numbers, from the published layouts; each writer also gives the matrix that its tensors stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

Array = np.ndarray[Any, Any]
Written = tuple[dict[str, torch.Tensor], Array]
"""Tensors by their last names, and the matrix ``[N, K]`` in float32."""
Writer = Callable[[Array], Written]

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}


def write_quantized(folder: Path, writer: Writer, quantization: dict[str, Any], **extra: torch.Tensor) -> Any:
    """Write a llama with all projections but ``lm_head`` through ``writer``; return transformers' model of the same
    weights, expanded. ``extra``: further tensors, with "__" for dots."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).float().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    tensors, expanded = {name.replace("__", "."): tensor for name, tensor in extra.items()}, {}
    for name, value in model.state_dict().items():
        expanded[name] = value
        if "_proj" not in name:
            tensors[name] = value.contiguous()
            continue
        parts, matrix = writer(value.numpy())
        expanded[name] = torch.from_numpy(matrix.copy())
        tensors |= {f"{name.removesuffix('.weight')}.{leaf}": part for leaf, part in parts.items()}
    model.load_state_dict(expanded)
    save_folder(folder, model.config.to_dict() | {"quantization_config": quantization}, tensors)
    return model


def save_folder(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config |= {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def quantize(matrix: Array, bits: int, group_of: Array, symmetric: bool) -> tuple[Array, Array, Array]:
    """``(q [N, K], scales [N, G] float16, zeros [N, G])``, unsigned."""
    groups, top = int(group_of.max()) + 1, 2**bits - 1
    q = np.zeros(matrix.shape, np.int64)
    scales, zeros = np.zeros((len(matrix), groups), np.float16), np.zeros((len(matrix), groups), np.int64)
    for group in range(groups):
        part = matrix[:, group_of == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales[:, group] = (high - low) / top
        step = scales[:, group].astype(np.float32)
        zeros[:, group] = 2 ** (bits - 1) if symmetric else np.clip(np.round(-low / step), 0, top)
        q[:, group_of == group] = np.clip(np.round(part / step[:, None]) + zeros[:, group, None], 0, top)
    return q, scales, zeros


def expand(q: Array, scales: Array, zeros: Array, group_of: Array) -> Array:
    return ((q - zeros[:, group_of]) * scales.astype(np.float32)[:, group_of]).astype(np.float32)


def words(numbers: list[list[int]], bits: int, order: list[int]) -> torch.Tensor:
    """int32: in each row the consecutive numbers that fit a word, number ``order[i]`` of them at bits ``i * bits``."""
    each = 32 // bits
    rows = []
    for row in numbers:
        row = [*row, *[0] * (-len(row) % each)]
        packed = [sum(row[i + order[j]] << (bits * j) for j in range(each)) for i in range(0, len(row), each)]
        rows.append([word - 2**32 if word >= 2**31 else word for word in packed])
    return torch.tensor(rows, dtype=torch.int32)


def straight(bits: int) -> list[int]:
    return list(range(32 // bits))


def awq(group: int) -> Writer:
    def write(matrix: Array) -> Written:
        group_of = np.arange(matrix.shape[1]) // group
        q, scales, zeros = quantize(matrix, 4, group_of, symmetric=False)
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        parts = {
            "qweight": words(q.T.tolist(), 4, order),
            "qzeros": words(zeros.T.tolist(), 4, order),
            "scales": torch.from_numpy(scales.T.copy()),
        }
        return parts, expand(q, scales, zeros, group_of)

    return write


def gptq(
    bits: int = 4, group: int = 32, *, symmetric: bool = True, act_order: bool = False, version: int = 1
) -> Writer:
    def write(matrix: Array) -> Written:
        columns = matrix.shape[1]
        group_of = np.arange(columns) // group
        if act_order:
            group_of = np.random.default_rng(columns).permutation(group_of)
        q, scales, zeros = quantize(matrix, bits, group_of, symmetric)
        qzeros = words(zeros.T.tolist(), bits, straight(bits))
        if version == 1:  # as GPTQModel goes back from version 2: whole words, so that a zero of 0 borrows
            one = sum(1 << (bits * i) for i in range(32 // bits))
            qzeros = torch.tensor([[_int32(word - one) for word in row] for row in qzeros.tolist()], dtype=torch.int32)
        parts = {
            "qweight": words(q.T.T.tolist(), bits, straight(bits)).T,
            "qzeros": qzeros,
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(group_of.astype(np.int32)),
        }
        return parts, expand(q, scales, zeros, group_of)

    return write


def _int32(number: int) -> int:
    return (number + 2**31) % 2**32 - 2**31


def fp8(kind: str, *, scale: str = "weight_scale", inputs: str | None = None) -> Writer:
    """``kind``: "tensor", "channel" or "block" (of 32 x 32 here); ``inputs``: the name of a fixed input scale."""

    def write(matrix: Array) -> Written:
        rows, columns = matrix.shape
        block = {"tensor": (rows, columns), "channel": (1, columns), "block": (32, 32)}[kind]
        scales = np.zeros((-(-rows // block[0]), -(-columns // block[1])), np.float32)
        values = np.zeros(matrix.shape, np.float32)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                where = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
                scales[i, j] = np.abs(matrix[where]).max() / 448
                values[where] = matrix[where] / scales[i, j]
        stored = torch.from_numpy(values).to(torch.float8_e4m3fn)
        wide = scales.repeat(block[0], 0).repeat(block[1], 1)[:rows, :columns]
        parts = {"weight": stored, scale: torch.from_numpy(scales.reshape(() if kind == "tensor" else scales.shape))}
        if inputs:
            parts[inputs] = torch.tensor(0.02)
        return parts, stored.float().numpy() * wide

    return write


def pack_quantized(bits: int = 4, group: int | None = 32, *, symmetric: bool = True, act_order: bool = False) -> Writer:
    def write(matrix: Array) -> Written:
        rows, columns = matrix.shape
        group_of = np.arange(columns) // (group or columns)
        if act_order:
            group_of = np.random.default_rng(columns).permutation(group_of)
        q, scales, zeros = quantize(matrix, bits, group_of, symmetric)
        parts = {
            "weight_packed": words(q.tolist(), bits, straight(bits)),
            "weight_scale": torch.from_numpy(scales).bfloat16(),
            "weight_shape": torch.tensor([rows, columns]),
        }
        if not symmetric:
            parts["weight_zero_point"] = words(zeros.T.tolist(), bits, straight(bits)).T
        if act_order:
            parts["weight_g_idx"] = torch.from_numpy(group_of.astype(np.int32))
        return parts, expand(q, parts["weight_scale"].float().numpy(), zeros, group_of)

    return write


def int_quantized(*, symmetric: bool = True, per_tensor: bool = False) -> Writer:
    def write(matrix: Array) -> Written:
        group_of = np.zeros(matrix.shape[1], np.int64)
        if per_tensor:
            q, scales, zeros = quantize(matrix.reshape(1, -1), 8, np.zeros(matrix.size, np.int64), symmetric)
            q = q.reshape(matrix.shape)
        else:
            q, scales, zeros = quantize(matrix, 8, group_of, symmetric)
        parts = {
            "weight": torch.from_numpy(q - 128).to(torch.int8),
            "weight_scale": torch.from_numpy(scales.reshape(-1) if per_tensor else scales),
        }
        if not symmetric:
            parts["weight_zero_point"] = torch.from_numpy(zeros - 128).to(torch.int8)
        every = (len(matrix), 1)
        return parts, expand(q, np.broadcast_to(scales, every), np.broadcast_to(zeros, every), group_of)

    return write


def compressed(layout: str, inputs: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    """A ``quantization_config`` of compressed-tensors."""
    args = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False, **weights}
    group = {"targets": ["Linear"], "weights": args, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }
