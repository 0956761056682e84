"""Random LoRA adapters of tiny models, made and saved by PEFT, which is also the oracle of what they do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGETS: dict[str, list[str]] = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "phi3-partial": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qwen3-moe": ["q_proj", "v_proj", "o_proj"],
    "starcoder2": ["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
"""Layers that adapters can have, where they are not those of Llama."""

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model: Any, name: str, seed: int = 0, **options: Any) -> Any:
    """A copy of a transformers model with a random adapter, large enough to change its tokens; as PEFT runs it."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 8, "lora_alpha": 12, "target_modules": TARGETS.get(name, LLAMA), **options}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = get_peft_model(copy.deepcopy(model), LoraConfig(**options)).eval()
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.15)
    return theirs


def save(theirs: Any, folder: Path) -> Path:
    """Write an adapter as PEFT does."""
    theirs.save_pretrained(folder)
    return folder


def make_adapter(model: Any, name: str, folder: Path, seed: int = 0, **options: Any) -> tuple[Any, Path]:
    """`adapted` and `save`."""
    theirs = adapted(model, name, seed, **options)
    return theirs, save(theirs, folder)


@torch.inference_mode()
def logits_of(theirs: Any, tokens: list[int]) -> Tensor:
    return theirs(input_ids=torch.tensor([tokens])).logits[0].float()


def greedy(theirs: Any, prompt: list[int], count: int) -> list[int]:
    """Tokens of a model by PEFT and transformers."""
    out = theirs.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()
