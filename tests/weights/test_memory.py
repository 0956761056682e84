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
from octavo.layers.build import Build
from octavo.models.loading import load_weights, param_bytes
from octavo.models.registry import build_model
from octavo.parallel import Shard
from octavo.weights.open import open_checkpoint

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

def load(checkpoint):
    model = build_model(checkpoint.config, Build(for_device("cpu"), Shard(), torch.bfloat16, torch.device("cpu")), 64)
    before = start_again()
    load_weights(model, checkpoint.tensors())
    return (status("VmHWM") - before) / param_bytes(model)

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


def measure(path: Path, what: str) -> float:
    done = subprocess.run([sys.executable, "-c", MEASURE, path, what], capture_output=True, text=True, timeout=120)
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


def test_packed_gguf_is_the_files_own_pages(gguf_file: Path) -> None:
    """Only the rows of query and key projections are copies, in another order: 2 of 12.4 parts."""
    assert measure(gguf_file, "keep") < 0.25
