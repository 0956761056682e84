"""The command line as a user meets it, on a tiny random model that chats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import octavo
from helpers_text import byte_level_bpe, save_bpe

CONTEXT = 8192
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}tools:{% for t in tools %} {{ t.function.name }}{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAST = ("--kv-cache-memory", "8M", "--block-size", "4", "--max-num-batched-tokens", "256")
"""Engine options that suit it."""

_HIDDEN, _HEADS, _KV_HEADS, _MLP, _LAYERS = 32, 4, 2, 48, 2


def make_chat_model(folder: Path, special: Sequence[str] = (), **tokenizer: Any) -> Path:
    """Write a model folder: random weights, a byte-level tokenizer with ``special`` tokens, ``TEMPLATE``. No end token,
    so that nothing stops early by accident.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = byte_level_bpe(special).get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": _HIDDEN,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(vocab_size), folder / "model.safetensors")
    return save_bpe(folder, special, **{"chat_template": TEMPLATE, **tokenizer})


def make_chat_adapter(folder: Path, rank: int = 4, seed: int = 1) -> Path:
    """Write a LoRA adapter of that model in PEFT's format: random, for queries and for what the MLP gives."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = {"self_attn.q_proj": (_HIDDEN, _HIDDEN), "mlp.down_proj": (_HIDDEN, _MLP)}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng, tensors = torch.Generator().manual_seed(seed), {}
    for i in range(_LAYERS):
        for name, (rows, columns) in targets.items():
            module = f"base_model.model.model.layers.{i}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=rng)
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=rng)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _weights(vocab_size: int) -> dict[str, torch.Tensor]:
    kv = _HIDDEN // _HEADS * _KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, _HIDDEN),
        "lm_head.weight": (vocab_size, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
    }
    for i in range(_LAYERS):
        layer = f"model.layers.{i}."
        for name, rows, columns in (
            ("self_attn.q_proj", _HIDDEN, _HIDDEN),
            ("self_attn.k_proj", kv, _HIDDEN),
            ("self_attn.v_proj", kv, _HIDDEN),
            ("self_attn.o_proj", _HIDDEN, _HIDDEN),
            ("mlp.gate_proj", _MLP, _HIDDEN),
            ("mlp.up_proj", _MLP, _HIDDEN),
            ("mlp.down_proj", _HIDDEN, _MLP),
        ):
            shapes[f"{layer}{name}.weight"] = (rows, columns)
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (_HIDDEN,)
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) * 0.3 for name, shape in shapes.items()}


def environment(**extra: str) -> dict[str, str]:
    """For a subprocess that imports the same Octavo."""
    root = str(Path(octavo.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **extra}


def octavo_process(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line. Ctrl-C reaches it even if whoever runs the tests ignores Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "octavo", *map(str, arguments)],
        **{
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": environment(),
            "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        },
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait for something to become true while ``process`` runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {process.communicate()}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def batch_line(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    """A line of a batch's input."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write_lines(path: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    """A file of JSON lines; strings are written as they are."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a file of JSON lines, each of which must be whole."""
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]
