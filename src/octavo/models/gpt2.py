"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): the one to learn from.

The whole model: a token's vector and its position's are added; twelve times, each token takes from the earlier ones
what it attends to, and then thinks by itself; what comes out is compared with every token's vector. Each of those parts
reads the stream through a norm and adds its result to it:

    h = x + attention(norm(x))
    y = h + mlp(norm(h))

Later families have the same two lines. They rotate queries and keys instead of adding positions, scale with RMSNorm
instead of LayerNorm, leave out biases, and gate the feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.kernels.forward_batch import ForwardBatch
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.layers.embedding import Embedding
from octavo.layers.mlp import MLP
from octavo.layers.norm import LayerNorm, Norm
from octavo.models.decoder import DecoderModel
from octavo.models.tensors import NamedTensor, Part, own_name, split

NAMES = {
    ".wte.": ".model.embed_tokens.",
    ".wpe.": ".embed_positions.",
    ".ln_f.": ".model.norm.",
    ".h.": ".model.layers.",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_attn.": ".self_attn.c_attn.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".transformer.": ".",
}
"""The checkpoints' names -> this model's. Older checkpoints lack the "transformer." in front."""

TURNED = (".c_attn.weight", ".c_fc.weight", ".c_proj.weight")
"""Weights that Hugging Face's checkpoints keep as ``[in, out]``."""


MASKS = (".attn.bias", ".attn.masked_bias")
"""What some checkpoints have and no model needs."""


class GPT2(DecoderModel):
    """Learned positions, LayerNorm, biases everywhere, GELU."""

    def __init__(self, config: ModelConfig, build: Build, max_positions: int) -> None:
        super().__init__(config, build, max_positions)
        self.embed_positions = Embedding(build, config.max_position_embeddings, config.hidden_size)

    def embed(self, batch: ForwardBatch) -> Tensor:
        positions: Tensor = self.embed_positions(batch.positions)
        return super().embed(batch) + positions

    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        """The table's angles are all 0: nothing is rotated."""
        return Attention(build, config, cos_sin, qkv_bias=True)

    def mlp(self, build: Build, config: ModelConfig, index: int) -> nn.Module:
        return MLP(build, config)

    def norm(self, build: Build, config: ModelConfig) -> Norm:
        return LayerNorm(build, config.hidden_size, config.rms_norm_eps)

    def parts(self, tensor: NamedTensor) -> Iterator[NamedTensor]:
        if tensor.name.endswith(MASKS):
            return
        own = own_name(tensor, NAMES)
        turned = is_turned(tensor.name)
        if ".c_attn." in own.name or ".qkv_proj." in own.name:
            thirds = dict.fromkeys(("q_proj", "k_proj", "v_proj"), self.config.hidden_size)
            yield from split(own, thirds, transposed=turned)
        elif turned:
            yield Part(own.name, own, transposed=True)
        else:
            yield own


def is_turned(name: str) -> bool:
    """Whether a tensor of a checkpoint is ``[in, out]``. GGUF's come under this model's names, and as ``[out, in]``."""
    return ".h." in f".{name}" and name.endswith(TURNED)
