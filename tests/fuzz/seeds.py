"""Writes small whole files for the fuzzer to begin with: ``PYTHONPATH=tests python tests/fuzz/seeds.py``."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from fuzz_targets import FEW, SCHEMES
from safetensors.torch import save, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import helpers_quantized as quantized
from helpers_gguf import model_metadata, write_gguf, write_llama
from helpers_llama2c import write_llama2c
from octavo.weights.quantized.scheme import parse_scheme
from octavo.weights.safetensors_file import KINDS

CORPUS = Path(__file__).resolve().parent / "corpus"
SHAPE = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "mscale": 1.0}
GROUPED = {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": True, "checkpoint_format": "gptq"}


def put(parser: str, name: str, data: bytes | str) -> None:
    path = CORPUS / parser / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def checkpoints(folder: Path) -> None:
    changes = {"embedding_length": 8, "feed_forward_length": 8, "block_count": 1, "rope__dimension_count": 2}
    put("gguf", "llama", write_llama(folder / "a.gguf", vocab_size=8, **changes)[0].read_bytes())
    wide = {"embedding_length": 32, "feed_forward_length": 32, "block_count": 1, "rope__dimension_count": 8}
    put("gguf", "llama-q8", write_llama(folder / "b.gguf", "Q8_0", vocab_size=8, **wide)[0].read_bytes())
    put("gguf", "experts", mixture(folder / "c.gguf"))
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=4))
    for version in (0, 1, 2):
        write_llama2c(folder / "m.bin", model, version, group_size=8)
        put("llama2c", f"version-{version}", (folder / "m.bin").read_bytes())
    put("safetensors", "three", save({"a": torch.ones(2, 3), "b": torch.ones(4).half(), "c": torch.ones(0)}))
    put(
        "index",
        "two",
        json.dumps({"weight_map": {"1.weight": "model-1.safetensors", "2.weight": "model-2.safetensors"}}),
    )
    put("index", "itself", json.dumps({"weight_map": {"1.weight": "model.safetensors.index.json"}}))


def mixture(path: Path) -> bytes:
    """A GGUF file of one layer with two experts, whose matrices are stacks of Q8_0."""
    sizes = {"embedding_length": 32, "feed_forward_length": 32, "block_count": 1, "rope__dimension_count": 8}
    metadata = model_metadata(**sizes, expert_count=2, expert_used_count=1, expert_feed_forward_length=32)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    arrays = {f"blk.0.{name}.weight": np.ones((*[2] * name.endswith("exps"), 32, 32), np.float32) for name in names}
    arrays["blk.0.ffn_gate_inp.weight"] = np.ones((2, 32), np.float32)
    arrays |= {f"blk.0.{name}.weight": np.ones(32, np.float32) for name in ("attn_norm", "ffn_norm")}
    arrays |= {"token_embd.weight": np.ones((8, 32), np.float32), "output_norm.weight": np.ones(32, np.float32)}
    kinds = {name: "Q8_0" if array.ndim > 1 and "inp" not in name else "F32" for name, array in arrays.items()}
    return write_gguf(path, metadata, {name: (arrays[name], kind) for name, kind in kinds.items()}).read_bytes()


def configs() -> None:
    for kind in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        config = {**SHAPE, "architectures": [kind], "rope_scaling": ROPE, "sliding_window": 4, "eos_token_id": [1, 2]}
        put("hf_config", kind, json.dumps(config))
    put("generation_config", "all", json.dumps({"eos_token_id": [1], "temperature": 0.6, "top_k": 5, "top_p": 0.9}))
    added = {"7": {"content": "<x>", "special": True, "lstrip": False}}
    whole = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "added_tokens_decoder": added, "legacy": False}
    put("tokenizer_config", "whole", json.dumps(whole | {"chat_template": [{"name": "default", "template": "{{a}}"}]}))


def tokenizers() -> None:
    model = io.BytesIO()
    text = iter(["the quick brown fox jumps over the lazy dog and the dog does not mind at all"] * 20)
    options = {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "minloglevel": 2}
    options |= {"normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, model_writer=model, **options)
    put("tokenizer_model", "spm", model.getvalue())
    put("tokenizer_model", "ranks", b"AA== 0\nAQ== 1\nAAE= 2\n")
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0x41>", b" ", b"a", b" a", "é".encode()]
    body = b"".join(struct.pack("<fi", -float(i), len(piece)) + piece for i, piece in enumerate(pieces))
    put("tokenizer_bin", "small", struct.pack("<i", 7) + body)


def gguf_tokenizers(folder: Path) -> None:
    import gguf

    for kind, merges in (("llama", []), ("gpt2", ["a b"])):
        writer = gguf.GGUFWriter(folder / "t.gguf", "llama")
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre("llama3")
        writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab"])
        writer.add_token_types([2, 3, 3, 1, 1, 1])
        writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0])
        writer.add_token_merges(merges or ["a b"])
        writer.add_bos_token_id(1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        put("gguf_tokenizer", kind, (folder / "t.gguf").read_bytes())


def quantized_matrices(folder: Path) -> None:
    from numpy.random import default_rng

    matrix = default_rng(0).standard_normal((8, 16)).astype("float32")
    float8 = {"type": "float", "strategy": "block", "block_structure": [4, 4]}
    for name, writer, config in (
        ("awq", quantized.awq(8), {"quant_method": "awq", "bits": 4, "version": "gemm"}),
        ("gptq", quantized.gptq(group=8, act_order=True), GROUPED),
        ("gptq8", quantized.gptq(8, 8, symmetric=False), GROUPED | {"bits": 8}),
        ("fp8", quantized.fp8("block"), {"quant_method": "fp8", "weight_block_size": [32, 32]}),
        ("ct4", quantized.pack_quantized(group=8, symmetric=False), quantized.compressed("pack-quantized", num_bits=4)),
        ("ct8", quantized.int_quantized(symmetric=False), quantized.compressed("int-quantized")),
        ("ctf", quantized.fp8("channel"), quantized.compressed("float-quantized", **float8)),
    ):
        put("quantized_parts", name, encode(config, writer(matrix)[0]))
        save_file({f"a.{leaf}": part.contiguous() for leaf, part in writer(matrix)[0].items()}, folder / "q")
        put("quantization", name, json.dumps(config).encode() + b"\n\n" + (folder / "q").read_bytes())


def adapters() -> None:
    base = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "c_fc"]}
    layers = {"layers_to_transform": [0, 1], "layers_pattern": "layers", "exclude_modules": ["1.q_proj"]}
    patterns = {"rank_pattern": {"^m.layers.1.q_proj": 3}, "alpha_pattern": {".*0.q_proj": 5}, "use_rslora": True}
    for name, options in (
        ("plain", {}),
        ("layers", layers),
        ("patterns", patterns),
        ("text", {"target_modules": ".*"}),
    ):
        rank = 3 if name == "patterns" else 2
        pair = {"A": torch.ones(rank, 3), "B": torch.ones(4, rank)}
        module = f"base_model.model.m.layers.{int(name == 'patterns')}.q_proj"
        tensors = save({f"{module}.lora_{part}.weight": tensor for part, tensor in pair.items()})
        put("adapter", name, json.dumps(base | options).encode() + b"\n\n" + tensors)


def encode(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """What `fuzz_targets.parts_of` makes such tensors of; those with many values keep their first value only."""
    settings = next(known for known in SCHEMES if known["quant_method"] == config["quant_method"])
    out = [SCHEMES.index(settings)]
    for leaf in sorted(parse_scheme(settings).leaves):
        out.append(int(leaf in tensors))
        if (tensor := tensors.get(leaf)) is not None:
            kind = list(KINDS.values()).index(str(tensor.dtype).removeprefix("torch."))
            values = tensor.flatten().tolist() if tensor.numel() <= FEW and "int" in str(tensor.dtype) else [1]
            out += [kind, tensor.ndim, *tensor.shape, *(int(value) & 255 for value in values)]
    return bytes(out)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        checkpoints(Path(name))
        gguf_tokenizers(Path(name))
        quantized_matrices(Path(name))
    adapters()
    configs()
    tokenizers()
