"""Memory while a checkpoint of about 300 MB is loaded, each in a process of its own.

What counts is resident memory (``VmHWM``, which the kernel keeps exactly): the process's own pages and the file's pages
that are mapped. ``RssAnon`` is the part that no other process can share.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LAYERS, HIDDEN, INTERMEDIATE, VOCAB = 10, 1024, 2816, 16000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
}

MEASURE = """
import sys
from pathlib import Path
import torch
from octavo.kernels import for_device
from octavo.layers.build import Build, Packing
from octavo.models.loading import load_weights, param_bytes
from octavo.models.registry import build_model
from octavo.parallel import Shard
from octavo.quantization.schemes import SCHEMES
from octavo.weights.open import open_checkpoint

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

def load(checkpoint, packing=Packing()):
    build = Build(for_device("cpu"), Shard(), torch.bfloat16, torch.device("cpu"), packing)
    model = build_model(checkpoint.config, build, 64)
    before = start_again()
    load_weights(model, list(checkpoint.tensors()), pack=packing.active)
    return (status("VmHWM") - before) / param_bytes(model)

def load_packed(checkpoint):
    return load(checkpoint, Packing(keeps=lambda kind: True, must_keep=True))

def quantize(checkpoint):
    return load(checkpoint, Packing(SCHEMES[sys.argv[3]]))

def start_again():
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what it is now
    return status("VmRSS")

def keep(checkpoint):
    own = status("RssAnon")
    kept = [tensor.packed() for tensor in checkpoint.tensors() if "_proj" in tensor.name]
    assert all(weight.blocks.numpy().max() == 0 for weight in kept)  # all pages are touched
    return (status("RssAnon") - own) / sum(weight.nbytes for weight in kept)

torch.set_num_threads(1)
print(globals()[sys.argv[2]](open_checkpoint(Path(sys.argv[1]))))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]


def measure(path: Path, *what: str) -> float:
    done = subprocess.run([sys.executable, "-c", MEASURE, path, *what], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


def shapes() -> dict[str, tuple[int, ...]]:
    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (INTERMEDIATE, HIDDEN)),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (HIDDEN,)),
    }
    layers = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()}
    whole = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    return {**whole, **layers, "model.norm.weight": (HIDDEN,)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(
        {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes().items()}, tmp_path / "model.safetensors"
    )
    assert 0.95 < measure(tmp_path, "load") < 1.15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 300 MB in bfloat16."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("plain")
    (path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes().items()}
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("scheme", ["int8", "w8a8", "fp8", "int4"])
def test_quantized_while_it_is_loaded(folder: Path, scheme: str) -> None:
    """Beside what stays there is one quantized matrix, and no plain one."""
    assert 0.95 < measure(folder, "quantize", scheme) < 1.15


def awq(n: int, k: int) -> dict[str, torch.Tensor]:
    words, zeros = torch.zeros(k, n // 8, dtype=torch.int32), torch.zeros(k // 128, n // 8, dtype=torch.int32)
    return {"qweight": words, "qzeros": zeros, "scales": torch.ones(k // 128, n, dtype=torch.float16)}


def gptq(n: int, k: int) -> dict[str, torch.Tensor]:
    order = (torch.arange(k, dtype=torch.int32) * 7919 % k) // 128  # act-order
    return {**awq(n, k), "qweight": torch.zeros(k // 8, n, dtype=torch.int32), "g_idx": order}


def fp8(n: int, k: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.zeros(n, k, dtype=torch.float8_e4m3fn), "weight_scale": torch.ones(n, 1)}


def int4(n: int, k: int) -> dict[str, torch.Tensor]:
    scales = torch.ones(n, k // 128, dtype=torch.bfloat16)
    words, shape = torch.zeros(n, k // 8, dtype=torch.int32), torch.tensor([n, k])
    return {"weight_packed": words, "weight_scale": scales, "weight_shape": shape}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
FOLDERS = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 128}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "compressed-tensors": (
        int4,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}},
            "ignore": ["lm_head"],
        },
    ),
}


@pytest.mark.parametrize("what", ["load_packed", "load"])
@pytest.mark.parametrize("name", FOLDERS)
def test_quantized_folders(tmp_path: Path, name: str, what: str) -> None:
    """As they are, and expanded."""
    from safetensors.torch import save_file

    parts, config = FOLDERS[name]
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": config}))
    tensors = {}
    for full, shape in shapes().items():
        if "_proj" in full:
            module = full.removesuffix(".weight")
            tensors |= {f"{module}.{leaf}": part.clone() for leaf, part in parts(*shape).items()}
        else:
            tensors[full] = torch.zeros(shape, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    assert 0.95 < measure(tmp_path, what) < 1.15


EXPERTS = {
    **CONFIG,
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 24,
    "num_local_experts": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 512,
}


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_experts_quantized_while_they_are_loaded(tmp_path: Path, scheme: str) -> None:
    """150 million weights, nearly all of them experts'."""
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(EXPERTS))
    matrix, vector = torch.zeros(512, 512, dtype=torch.bfloat16), torch.zeros(512, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": matrix, "lm_head.weight": matrix, "model.norm.weight": vector}
    for i in range(24):
        layer = f"model.layers.{i}"
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors |= {f"{layer}.{name}.weight": vector for name in norms}
        tensors |= {f"{layer}.self_attn.{name}_proj.weight": matrix for name in "qkvo"}
        tensors[f"{layer}.block_sparse_moe.gate.weight"] = matrix[:8]
        experts = (f"{layer}.block_sparse_moe.experts.{e}.w{part}.weight" for e in range(8) for part in (1, 2, 3))
        tensors |= dict.fromkeys(experts, matrix)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert 0.95 < measure(tmp_path, "quantize", scheme) < 1.15


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 170 MB of Q8_0, 310 MB in bfloat16."""
    import gguf
    import numpy as np

    from helpers_gguf import add_value, model_metadata

    path = tmp_path_factory.mktemp("memory") / "model.gguf"
    sizes = {"embedding_length": HIDDEN, "feed_forward_length": INTERMEDIATE, "block_count": LAYERS}
    heads = {"attention__head_count": 16, "attention__head_count_kv": 16, "rope__dimension_count": 64}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in model_metadata(**sizes, **heads).items():
        add_value(writer, key, value)
    from octavo.weights.gguf_names import LAYER_NAMES

    theirs = {ours: name for name, ours in LAYER_NAMES.items()}
    ends = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    for name, shape in shapes().items():
        parts = name.removesuffix(".weight").removeprefix("model.").split(".", 2)
        stored = f"blk.{parts[1]}.{theirs[parts[2]]}" if parts[0] == "layers" else ends[parts[0]]
        if len(shape) == 1:
            writer.add_tensor(f"{stored}.weight", np.zeros(shape, np.float32))
        else:
            blocks = np.zeros((shape[0], shape[1] // 32 * 34), np.uint8)
            writer.add_tensor(f"{stored}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_expanded(gguf_file: Path) -> None:
    assert 0.95 < measure(gguf_file, "load") < 1.15


def test_gguf_that_stays_packed(gguf_file: Path) -> None:
    assert 0.95 < measure(gguf_file, "load_packed") < 1.15


@pytest.fixture(scope="module")
def gguf_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 million weights in Q8_0, nearly all of them experts'."""
    import gguf
    import numpy as np

    from helpers_gguf import add_value, model_metadata

    path = tmp_path_factory.mktemp("experts") / "model.gguf"
    sizes = {"embedding_length": 512, "feed_forward_length": 512, "block_count": 24}
    heads = {"attention__head_count": 8, "attention__head_count_kv": 8, "rope__dimension_count": 64}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in model_metadata(**sizes, **heads, expert_count=8, expert_used_count=2).items():
        add_value(writer, key, value)
    matrix, vector = np.zeros((512, 512 // 32 * 34), np.uint8), np.zeros(512, np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", matrix, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", vector)
    for i in range(24):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", vector)
        writer.add_tensor(f"blk.{i}.ffn_gate_inp.weight", np.zeros((8, 512), np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{i}.{name}.weight", matrix, raw_dtype=kind)
        for name in ("gate", "up", "down"):
            stack = np.zeros((8, *matrix.shape), np.uint8)
            writer.add_tensor(f"blk.{i}.ffn_{name}_exps.weight", stack, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("what", ["load", "load_packed"])
def test_experts_of_gguf(gguf_experts: Path, what: str) -> None:
    assert 0.95 < measure(gguf_experts, what) < 1.15


def test_packed_gguf_is_the_files_own_pages(gguf_file: Path) -> None:
    """Only the rows of query and key projections are copies, in another order: 2 of 12.4 parts."""
    assert measure(gguf_file, "keep") < 0.25
