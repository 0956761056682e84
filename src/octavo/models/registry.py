"""Which class is which architecture. A family's file is imported when a model of it is asked for."""

from __future__ import annotations

from importlib import import_module

from octavo.config import ModelConfig
from octavo.errors import ModelError, nearest
from octavo.layers.build import Build
from octavo.models.decoder import DecoderModel

MODELS = {
    "LlamaForCausalLM": "octavo.models.llama:Llama",
    "MistralForCausalLM": "octavo.models.llama:Llama",
    "SmolLM3ForCausalLM": "octavo.models.llama:Llama",
    "Qwen2ForCausalLM": "octavo.models.qwen2:Qwen2",
    "Qwen3ForCausalLM": "octavo.models.qwen3:Qwen3",
    "Qwen3MoeForCausalLM": "octavo.models.qwen3:Qwen3MoE",
    "MixtralForCausalLM": "octavo.models.mixtral:Mixtral",
    "Gemma2ForCausalLM": "octavo.models.gemma:Gemma2",
    "Gemma3ForCausalLM": "octavo.models.gemma:Gemma3",
    "Gemma3ForConditionalGeneration": "octavo.models.gemma:Gemma3",
    "Phi3ForCausalLM": "octavo.models.phi3:Phi3",
    "Starcoder2ForCausalLM": "octavo.models.starcoder2:StarCoder2",
    "GPT2LMHeadModel": "octavo.models.gpt2:GPT2",
}
"""Architecture, as a checkpoint names it -> ``module:class``."""


def build_model(config: ModelConfig, build: Build, max_positions: int) -> DecoderModel:
    """A model of ``config`` with uninitialised weights; its requests have at most ``max_positions`` tokens.

    Raises ``ModelError`` for an architecture that is not in ``MODELS``, or a shape that the shards cannot
    share.
    """
    name = config.architecture
    if name not in MODELS:
        raise ModelError(
            f"architecture {name!r} is not supported{nearest(name, MODELS)}; accepted: {', '.join(MODELS)}"
        )
    module, _, class_name = MODELS[name].partition(":")
    return getattr(import_module(module), class_name)(config, build.fitted(config.hidden_size), max_positions)
