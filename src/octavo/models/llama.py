"""Llama 1, 2 and 3 (arXiv:2302.13971, 2307.09288, 2407.21783), Mistral (arXiv:2310.06825), which adds a window, and
SmolLM 3, in which every fourth layer does not rotate (arXiv:2501.18795).

TinyLlama, SmolLM2 and many others are of this family.
"""

from __future__ import annotations

from octavo.models.decoder import DecoderModel


class Llama(DecoderModel):
    """Rotary positions, grouped key/value heads, RMSNorm before each part, a gated MLP: what others are variants of."""
