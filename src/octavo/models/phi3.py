"""Phi-3 (arXiv:2404.14219), Phi-4 (arXiv:2412.08905) and Phi-4-mini (arXiv:2503.01743)."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.models.decoder import DecoderModel
from octavo.models.tensors import NamedTensor, own_name, split


class Phi3(DecoderModel):
    """Llama, whose checkpoints have queries, keys and values in one tensor, and the gate and the values of the MLP.

    Long contexts have rotary frequencies of their own (LongRoPE); Phi-4-mini rotates three quarters of a head.
    """

    def parts(self, tensor: NamedTensor) -> Iterator[NamedTensor]:
        config, tensor = self.config, own_name(tensor)
        kv = config.num_kv_heads * config.head_dim
        if ".qkv_proj." in tensor.name:
            yield from split(tensor, {"q_proj": config.num_heads * config.head_dim, "k_proj": kv, "v_proj": kv})
        elif ".gate_up_proj." in tensor.name:
            yield from split(tensor, dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size))
        else:
            yield tensor
