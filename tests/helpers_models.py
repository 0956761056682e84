"""Tiny random models of each family, as transformers makes them, and a hand-driven model over a paged
cache.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from octavo.kernels import for_device
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.lora import LoraPlan, LoraSizes
from octavo.kernels.ops import Ops
from octavo.layers.build import Build
from octavo.models.decoder import DecoderModel
from octavo.models.loading import load_weights
from octavo.models.registry import build_model
from octavo.parallel import Shard
from octavo.weights.hf_config import read_config
from octavo.weights.safetensors import SafetensorsCheckpoint

VOCAB = 131  # odd, so that nothing is a multiple of it

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **options}


def _llama(**options: Any) -> LlamaConfig:
    return LlamaConfig(**{**_SHAPE, **options})


_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {**_YARN, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_MSCALE = {"mscale": 1.2, "mscale_all_dim": 0.7, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
_LAYERS = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 9}
_GEMMA = {**_SHAPE, **_LAYERS, "head_dim": 16, "query_pre_attn_scalar": 24, "hidden_activation": "gelu_pytorch_tanh"}
_CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
_BASES = {
    "full_attention": _rope("linear", factor=4.0),
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
_EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
PHI3 = {**_SHAPE, "pad_token_id": 0}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 256}


def longrope(original: int, pairs: int) -> dict[str, Any]:
    """A Phi-3 whose frequencies have divisors that differ, and differ between short and long contexts."""
    short, long = ([1.0 + step * i for i in range(pairs)] for step in (0.1, 0.7))
    options = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": original}
    return {"rope_parameters": _rope("longrope", **options), "original_max_position_embeddings": original}


TINY: dict[str, Any] = {
    "llama": _llama(),
    "llama-mha": _llama(num_key_value_heads=6),
    "llama-tied": _llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama-bias": _llama(attention_bias=True, mlp_bias=True),
    "llama-head-dim": _llama(head_dim=20),
    "llama-linear": _llama(rope_parameters=_rope("linear", factor=4.0)),
    "llama-llama3": _llama(head_dim=32, rope_parameters=_rope("llama3", **_LLAMA3)),
    "llama-yarn": _llama(head_dim=32, rope_parameters=_rope("yarn", **_YARN)),
    "llama-yarn-mscale": _llama(head_dim=32, rope_parameters=_rope("yarn", **_YARN, **_MSCALE)),
    "mistral": MistralConfig(**_SHAPE, sliding_window=9),
    "qwen2": Qwen2Config(**_SHAPE),
    "qwen2-windows": Qwen2Config(**_SHAPE, **_WINDOWS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SHAPE, head_dim=16),
    "qwen3-windows": Qwen3Config(**_SHAPE, **_WINDOWS, head_dim=16, attention_bias=True),
    "llama-dynamic": _llama(rope_parameters=_rope("dynamic", factor=4.0)),
    "smollm3": SmolLM3Config(**_SHAPE, pad_token_id=0, no_rope_layer_interval=2),
    "gemma2": Gemma2Config(**_GEMMA, **_CAPS),
    "gemma3": Gemma3TextConfig(**_GEMMA, rope_parameters=_BASES),
    "phi3": Phi3Config(**PHI3, sliding_window=9),
    "phi3-partial": Phi3Config(
        **{**PHI3, "num_attention_heads": 3, "num_key_value_heads": 1}, partial_rotary_factor=0.75
    ),
    "phi3-longrope": Phi3Config(**PHI3, **longrope(256, 4)),
    "mixtral": MixtralConfig(**_SHAPE, num_local_experts=5, num_experts_per_tok=2),
    "qwen3-moe": Qwen3MoeConfig(**_SHAPE, **_EXPERTS, head_dim=16, norm_topk_prob=True, mlp_only_layers=[1]),
    "qwen3-moe-plain": Qwen3MoeConfig(**_SHAPE, **_EXPERTS, head_dim=16, decoder_sparse_step=2),
    "starcoder2": Starcoder2Config(**{**_SHAPE, "norm_epsilon": 1e-5}, sliding_window=9),
    "gpt2": GPT2Config(**_GPT2, bos_token_id=1, eos_token_id=2, attn_implementation="eager"),
}
"""Name -> transformers configuration."""


def make_tiny(name: str, folder: Path, seed: int = 0) -> tuple[Any, Path]:
    """Write a random model of configuration ``TINY[name]`` to ``folder / name``; return transformers' own and
    the path.

    Weights are large enough that logits differ clearly, and biases and norms are not trivial.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(TINY[name]).float().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    path = Path(folder) / name
    model.save_pretrained(path)
    return model, path


def load_tiny(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shard: Shard | None = None,
    ops: Ops | None = None,
    device: str = "cpu",
    lora: LoraSizes | None = None,
) -> DecoderModel:
    """Octavo's model of a folder that ``make_tiny`` wrote."""
    config, _ = read_config(path)
    build = Build(ops or for_device(device), shard or Shard(), dtype, torch.device(device), lora=lora)
    model = build_model(config, build, config.max_position_embeddings)
    load_weights(model, SafetensorsCheckpoint.open(path).tensors())
    return model


class PagedDriver:
    """Runs a model over a paged cache by hand: as the engine would, without a scheduler.

    Blocks are dealt in random order, and blocks that nobody owns hold garbage, as they do after a while in an
    engine.
    """

    def __init__(self, model: DecoderModel, *, block_size: int = 4, num_blocks: int = 256, seed: int = 0) -> None:
        self.model, self.block_size = model, block_size
        self.ops = model.model.norm.ops
        attention = model.model.layers[0].self_attn
        heads, weight = attention.qkv_proj.num_kv_heads, attention.o_proj.weight
        self.device = weight.device
        shape = (num_blocks, block_size, heads, model.config.head_dim, weight.dtype, weight.device)
        self.kv_cache = [KVLayer.zeros(*shape) for _ in range(model.config.num_layers)]
        for cache in (tensor for layer in self.kv_cache for tensor in layer.tensors):
            cache.fill_(1000.0)
        self._free = random.Random(seed).sample(range(num_blocks), num_blocks)
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def batch(self, rows: dict[int, Sequence[int]]) -> ForwardBatch:
        """A step that appends ``rows[request]`` to each request."""
        tokens, positions, slots, ends = [], [], [], []
        for request, new in rows.items():
            start = self.lengths.get(request, 0)
            self.lengths[request] = start + len(new)
            table = self.tables.setdefault(request, [])
            table += [self._free.pop() for _ in range(-(-self.lengths[request] // self.block_size) - len(table))]
            tokens += list(new)
            positions += range(start, start + len(new))
            slots += [
                table[p // self.block_size] * self.block_size + p % self.block_size for p in positions[-len(new) :]
            ]
            ends.append(len(tokens) - 1)
        width = max(len(self.tables[request]) for request in rows)
        tables = [self.tables[r] + [0] * (width - len(self.tables[r])) for r in rows]
        batch = ForwardBatch(
            token_ids=torch.tensor(tokens, device=self.device),
            positions=torch.tensor(positions, device=self.device),
            slot_mapping=torch.tensor(slots, device=self.device),
            query_lens=[len(new) for new in rows.values()],
            context_lens=[self.lengths[request] for request in rows],
            block_tables=torch.tensor(tables, device=self.device),
            logit_indices=torch.tensor(ends, device=self.device),
            kv_cache=self.kv_cache,
            block_size=self.block_size,
        )
        batch.attention = self.ops.plan_attention(batch)
        return batch

    def _plan_lora(self, numbers: list[int]) -> LoraPlan | None:
        stack = self.model.model.layers[0].self_attn.o_proj.lora
        return self.ops.plan_lora(torch.tensor(numbers, dtype=torch.int32, device=self.device), len(stack.a))

    def step(self, rows: dict[int, Sequence[int]], adapters: dict[int, int] | None = None) -> dict[int, Tensor]:
        """Append ``rows[request]`` to each request; return each one's logits ``[new tokens, V]``. ``adapters``: the
        numbers of those that have one.
        """
        batch = self.batch(rows)
        numbers = [(adapters or {}).get(request, 0) for request, new in rows.items() for _ in new]
        batch.lora = self._plan_lora(numbers) if adapters else None
        with torch.inference_mode():
            logits = self.model.logits(self.model(batch))
        return dict(zip(rows, logits.split(list(batch.query_lens)), strict=True))
