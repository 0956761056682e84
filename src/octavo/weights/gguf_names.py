"""llama.cpp's names of tensors -> Hugging Face's."""

from __future__ import annotations

MODEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "position_embd": "embed_positions",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""What a model has once."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
"""What each layer has: ``blk.0.attn_q`` is ``model.layers.0.self_attn.q_proj``."""

_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

OTHER_NAMES = {
    "gemma2": _GEMMA_NAMES,
    "gemma3": _GEMMA_NAMES,
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "starcoder2": {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    "gpt2": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
}
"""Architecture -> names of layers' parts that it has in another way than `LAYER_NAMES`."""

EXPERT_NAMES = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
"""Parts of a mixture of experts: one tensor has those of all experts of a layer, ``[experts, rows, columns]``."""

ONE_PLUS = ("gemma2", "gemma3")
"""Architectures whose norms' weights llama.cpp keeps with the 1 that is added to them."""


def hugging_face_name(name: str, architecture: str = "llama") -> str | None:
    """``blk.0.attn_q.weight`` -> ``model.layers.0.self_attn.q_proj.weight``; None for an unknown name."""
    parts = LAYER_NAMES | OTHER_NAMES.get(architecture, {})
    match name.split("."):
        case ["blk", index, part, ("weight" | "bias") as suffix] if (
            part in parts and index.isdecimal() and len(index) < 6
        ):
            return f"model.layers.{index}.{parts[part]}.{suffix}"
        case [part, "weight"] if part in MODEL_NAMES:
            return f"{MODEL_NAMES[part]}.weight"
        case ["output_norm", "bias"]:
            return "model.norm.bias"
    return None


def expert_names(name: str, count: int) -> list[str] | None:
    """``blk.0.ffn_up_exps.weight`` -> ``model.layers.0.mlp.experts.0.up_proj.weight`` and so on for each of ``count``
    experts; None for a tensor that is no stack of experts.
    """
    match name.split("."):
        case ["blk", index, part, "weight"] if part in EXPERT_NAMES and index.isdecimal() and len(index) < 6:
            return [f"model.layers.{index}.mlp.experts.{e}.{EXPERT_NAMES[part]}.weight" for e in range(count)]
    return None
