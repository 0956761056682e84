"""The parsers that read what strangers wrote, each as a function of bytes.

A target returns for a file that is fine and for one that is refused properly: with a ``ModelError`` of one line that is
not too long. Whatever else happens is a finding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from octavo.errors import ModelError
from octavo.weights.checkpoint import Checkpoint, LazyTensor
from octavo.weights.safetensors_file import KINDS

MAX_MESSAGE = 2000


def refuse_properly(parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            parse(data)
        except ModelError as error:
            if "\n" in str(error) or len(str(error)) > MAX_MESSAGE:
                raise AssertionError(f"not one short line: {str(error)[:3000]!r}") from error

    return target


@cache
def folder() -> Path:
    """A folder in memory where there is one, for all files of this process."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="octavo-fuzz-", dir=memory if memory.is_dir() else None))


def file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # what has been mapped keeps its bytes
    path.write_bytes(data)
    return path


def read_all(checkpoint: Checkpoint) -> None:
    for tensor in checkpoint.tensors():
        read(tensor)


def read(tensor: LazyTensor) -> None:
    """As it is, as plain numbers, and some rows of these, which must be the same bits."""
    tensor.packed()
    whole = tensor.read(torch.float32)
    if tensor.shape:
        rows = slice(tensor.shape[0] // 3, tensor.shape[0])
        assert torch.equal(tensor.read(torch.float32, rows).view(torch.int32), whole[rows].view(torch.int32))
        tensor.release(rows)
    tensor.release()


def gguf(data: bytes) -> None:
    from octavo.weights.gguf import GGUFCheckpoint

    read_all(GGUFCheckpoint.open(file("model.gguf", data)))


def gguf_tokenizer(data: bytes) -> None:
    from octavo.text.gguf_tokenizer import load_gguf_tokenizer

    load_gguf_tokenizer(file("tokenizer.gguf", data)).encode("a b")


def llama2c(data: bytes) -> None:
    from octavo.weights.llama2c import Llama2cCheckpoint

    read_all(Llama2cCheckpoint.open(file("model.bin", data)))


def tokenizer_bin(data: bytes) -> None:
    from octavo.text.llama2c_tokenizer import load_llama2c_tokenizer

    load_llama2c_tokenizer(file("tokenizer.bin", data)).encode("a b")


def tokenizer_model(data: bytes) -> None:
    from octavo.text.tokenizer import load_tokenizer

    load_tokenizer(file("spm/tokenizer.model", data)).encode("a b")


def tokenizer_config(data: bytes) -> None:
    from octavo.text.tokenizer_config import read_tokenizer_config

    read_tokenizer_config(file("tokenizer/tokenizer_config.json", data).parent)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def safetensors(data: bytes) -> None:
    from octavo.weights.open import open_checkpoint

    file("safetensors/config.json", json.dumps(CONFIG).encode())
    read_all(open_checkpoint(file("safetensors/model.safetensors", data).parent))


def index(data: bytes) -> None:
    from octavo.weights.open import open_checkpoint

    file("index/config.json", json.dumps(CONFIG).encode())
    path = file("index/model.safetensors.index.json", data)
    for number in (1, 2):
        save_file({f"{number}.weight": torch.ones(2)}, path.parent / f"model-{number}.safetensors")
    read_all(open_checkpoint(path.parent))


def hf_config(data: bytes) -> None:
    from octavo.weights.hf_config import read_config

    read_config(file("config/config.json", data).parent)


def generation_config(data: bytes) -> None:
    from octavo.weights.hf_config import read_config

    file("generation/config.json", json.dumps(CONFIG).encode())
    read_config(file("generation/generation_config.json", data).parent)


def quantization(data: bytes) -> None:
    """The configuration, an empty line, and the file of tensors."""
    from octavo.weights.hf_json import read_json
    from octavo.weights.quantized.scheme import parse_scheme
    from octavo.weights.quantized.tensor import quantized_tensors
    from octavo.weights.safetensors_file import SafetensorsFile

    config, _, tensors = data.partition(b"\n\n")
    scheme = parse_scheme(read_json(file("quantized.json", config), dict[str, Any]))
    for tensor in quantized_tensors(SafetensorsFile(file("quantized.safetensors", tensors)).tensors(), scheme):
        tensor.packed()
        tensor.read(torch.float32)


SCHEMES: list[dict[str, Any]] = [
    {"quant_method": "awq"},
    {"quant_method": "gptq"},
    {"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"},
    {"quant_method": "fp8", "weight_block_size": [4, 4], "activation_scheme": "static"},
    {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}, "b": {"weights": {}}}},
    {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"weights": {"type": "float", "block_structure": "4x4"}}},
    },
]
FEW = 32
"""Whole numbers that a tensor's values may be chosen for one by one."""


def quantized_parts(data: bytes) -> None:
    """Small tensors of any shapes and types for one module, as bytes choose them (see `parts_of`)."""
    from octavo.weights.quantized.scheme import parse_scheme
    from octavo.weights.quantized.tensor import quantized_tensors
    from octavo.weights.safetensors_file import SafetensorsFile

    scheme = parse_scheme(SCHEMES[data[0] % len(SCHEMES) if data else 0])
    path = file("parts.safetensors", b"")
    save_file(parts_of(data[1:], sorted(scheme.leaves)), path)
    for tensor in quantized_tensors(SafetensorsFile(path).tensors(), scheme):
        read(tensor)


def parts_of(data: bytes, leaves: list[str]) -> dict[str, torch.Tensor]:
    """For each leaf: whether it is there, its type, rank and dimensions, and its values, or one for all of them."""
    numbers = iter(data)
    tensors = {}
    for leaf in leaves:
        if next(numbers, 0) % 2:
            dtype = getattr(torch, list(KINDS.values())[next(numbers, 0) % len(KINDS)])
            shape = [next(numbers, 0) % 24 for _ in range(next(numbers, 0) % 4)]
            few = prod(shape) <= FEW and dtype in (torch.int32, torch.int64)
            values = [next(numbers, 0) for _ in range(prod(shape) if few else 1)]
            tensors[f"a.{leaf}"] = torch.tensor(values).expand(prod(shape)).reshape(shape).to(dtype).contiguous()
    return tensors


def adapter(data: bytes) -> None:
    """The configuration, an empty line, and the file of tensors."""
    from octavo.weights.peft import read_adapter

    config, _, tensors = data.partition(b"\n\n")
    path = file("adapter/adapter_config.json", config)
    file("adapter/adapter_model.safetensors", tensors)
    read = read_adapter(path.parent)
    for module in read.modules:
        read.config.wants(module.name)
        module.a.read(torch.float32)
        module.b.read(torch.float32)


TARGETS = {
    parse.__name__: refuse_properly(parse)
    for parse in (
        gguf,
        gguf_tokenizer,
        llama2c,
        tokenizer_bin,
        tokenizer_model,
        tokenizer_config,
        safetensors,
        index,
        hf_config,
        generation_config,
        quantization,
        quantized_parts,
        adapter,
    )
}
"""Name -> target."""
