"""What LoRA adapters cost: tokens per second without room for any, with room but none asked for, with 1 and with 4.

    python benchmarks/lora.py [--model smollm2-135m] [--requests 16] [--rank 16] [--json FILE]

The same prompts and lengths in every setting, in alternating rounds; medians. Adapters are random and have all seven
projections of each layer. With four, each request has the next one, so that every step mixes them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from octavo import LLM, LoRARequest, SamplingParams
from octavo.bench.environment import describe_environment
from octavo.config import ModelConfig

SETTINGS = {"off": 0, "0 adapters": 0, "1 adapter": 1, "4 adapters": 4}
"""Name -> adapters in use; "off" is an engine without room for any."""


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a layer's projections."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in mlp.items()}


def write_adapter(folder: Path, config: ModelConfig, rank: int, seed: int) -> Path:
    """A random adapter in PEFT's format, too small to change much."""
    folder.mkdir()
    shapes, generator = layer_shapes(config), torch.Generator().manual_seed(seed)
    tensors = {}
    for i in range(config.num_layers):
        for name, (outputs, inputs) in shapes.items():
            module = f"base_model.model.model.layers.{i}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 1e-3
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [name.partition(".")[2] for name in shapes]
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def run(llm: LLM, prompts: list[list[int]], output: int, loras: list[LoRARequest]) -> float:
    """Generated tokens per second, prompts included in the time."""
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, detokenize=False)
    chosen = [loras[i % len(loras)] if loras else None for i in range(len(prompts))]
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False, lora_request=chosen)
    return len(prompts) * output / (time.perf_counter() - start)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    options = {"max_model_len": args.prompt + args.output + 1, "max_num_seqs": args.requests, "device": args.device}
    options |= {"enable_prefix_caching": False, "load_format": args.load_format}
    options |= {"kv_cache_memory": args.kv_cache_memory} if args.kv_cache_memory else {}
    plain = LLM(args.model, **options)
    adapted = LLM(args.model, **options, enable_lora=True, max_loras=4, max_lora_rank=args.rank)
    config = plain.engine.model_config
    folders = [write_adapter(folder / str(i), config, args.rank, i) for i in range(4)]
    loras = [LoRARequest(f"adapter-{i}", lora_path=str(path)) for i, path in enumerate(folders)]
    rng = Random(0)
    prompts = [[rng.randrange(config.vocab_size) for _ in range(args.prompt)] for _ in range(args.requests)]
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for round_ in range(args.rounds + 1):  # the first one warms up
        for name, count in SETTINGS.items():
            rate = run(plain if name == "off" else adapted, prompts, args.output, loras[:count])
            rates[name] += [rate] if round_ else []
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    environment = describe_environment(adapted.engine)
    return {
        "benchmark": "lora",
        **environment,
        **vars(args),
        "json": None,
        "tokens_per_second": medians,
        "rates": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second with LoRA adapters.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--load-format", default="auto", help="dummy: random weights")
    parser.add_argument("--kv-cache-memory", type=int, metavar="BYTES", help="of each of the two engines")
    parser.add_argument("--requests", type=int, default=16, help="at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        report = measure(args, Path(folder))
    figures = report["tokens_per_second"]
    for name, rate in figures.items():
        print(f"{name:12} {rate:9.1f} tokens/s  {rate / figures['off']:6.1%}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
