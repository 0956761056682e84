"""Mixtral (arXiv:2401.04088): Mistral with a mixture of experts in each layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from octavo.config import ModelConfig
from octavo.layers.build import Build
from octavo.layers.experts import ExpertsMLP
from octavo.models.decoder import DecoderModel
from octavo.models.tensors import NamedTensor, own_name

NAMES = {".block_sparse_moe.": ".mlp.", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}
"""The checkpoints' names of what others call differently."""


class Mixtral(DecoderModel):
    """Each token goes through two of eight experts, weighted by the router's probabilities of these two."""

    def mlp(self, build: Build, config: ModelConfig, index: int) -> nn.Module:
        return ExpertsMLP(build, config)

    def parts(self, tensor: NamedTensor) -> Iterator[NamedTensor]:
        yield own_name(tensor, NAMES)
