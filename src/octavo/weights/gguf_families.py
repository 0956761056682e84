"""What the families say differently in a GGUF file's metadata, or what llama.cpp knows of them without being told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

PATTERNS = {"gemma2": 2, "gemma3": 6}
"""Architecture -> each how-manieth layer has no window."""

PARTLY_ROTATED = ("phi3",)
"""Architectures whose heads may be rotated in part."""

LAYER_NORMS = ("starcoder2", "gpt2")
"""Architectures with LayerNorm, and a feed-forward layer without a gate."""

NO_ROPE_STEP = {"smollm3": 4}
"""Architecture -> each how-manieth layer does not rotate."""

BY_WIDTH = {"gemma2": 46, "gemma3": 62}
"""Gemma's largest models, by their number of layers: they scale scores by the width of a head that all heads together
would have if they were as wide as the stream.
"""


class Fields(Protocol):
    """Typed access to the metadata of one architecture."""

    def __contains__(self, name: str) -> bool: ...
    def integer(self, name: str, default: int | None = None) -> int: ...
    def number(self, name: str, default: float | None = None) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFields:
    """As in `octavo.config.ModelConfig`; ``eps_key``: where the norms' epsilon is."""

    sliding_windows: tuple[int | None, ...]
    hidden_act: str = "silu"
    rotary_dim: int | None = None
    no_rope_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    eps_key: str = "attention.layer_norm_rms_epsilon"


def family_fields(architecture: str, fields: Fields, num_layers: int, head_dim: int) -> FamilyFields:
    """What is the architecture's own; ``embedding_length`` and ``attention.head_count`` are known to be above 0.

    Raises:
        ModelError: a value is of a wrong type.
    """
    window = fields.integer("attention.sliding_window", 0) or None
    if architecture in PATTERNS:
        return _gemma(architecture, fields, num_layers, window)
    everywhere = (window,) * num_layers
    if architecture in LAYER_NORMS:
        unrotated = tuple(range(num_layers)) if architecture == "gpt2" else ()
        return FamilyFields(
            sliding_windows=everywhere,
            hidden_act="gelu_tanh",
            no_rope_layers=unrotated,
            eps_key="attention.layer_norm_epsilon",
        )
    if architecture in PARTLY_ROTATED:
        rotated = fields.integer("rope.dimension_count", head_dim)
        return FamilyFields(sliding_windows=everywhere, rotary_dim=rotated if rotated != head_dim else None)
    step = NO_ROPE_STEP.get(architecture)
    unrotated = () if step is None else tuple(range(step - 1, num_layers, step))
    return FamilyFields(sliding_windows=everywhere, no_rope_layers=unrotated)


def _gemma(architecture: str, fields: Fields, num_layers: int, window: int | None) -> FamilyFields:
    second = architecture == "gemma2"
    caps = [fields.number(name, default) if second else None for name, default in _CAPS.items()]
    scale = None
    if num_layers == BY_WIDTH[architecture]:
        scale = (fields.integer("embedding_length") / fields.integer("attention.head_count")) ** -0.5
    every = PATTERNS[architecture]
    return FamilyFields(
        sliding_windows=tuple(window if (layer + 1) % every else None for layer in range(num_layers)),
        hidden_act="gelu_tanh",
        local_rope_theta=None if second else fields.number("rope.freq_base_swa", 10000.0),
        attention_scale=scale,
        attention_soft_cap=caps[0],
        logit_soft_cap=caps[1],
    )


_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
