"""Rotary embeddings as ``config.json`` describes them, in the older and the newer spelling."""

from __future__ import annotations

from octavo.config import RopeScaling
from octavo.errors import ModelError
from octavo.weights.hf_json import ConfigJson, RopeJson, convert

DEFAULT_THETA = 10000.0
KINDS = ("default", "linear", "llama3", "yarn")


def rope(config: ConfigJson, max_position: int) -> tuple[float, RopeScaling | None]:
    """Return (theta, scaling) of ``config``; ``max_position`` is its ``max_position_embeddings``.

    Older files have ``rope_theta`` and ``rope_scaling`` side by side, transformers 5 writes both into
    ``rope_parameters``. Raises ``ModelError`` for a kind of scaling that Octavo does not know.
    """
    values = config.rope_scaling or config.rope_parameters or {}
    if any(isinstance(value, dict) for value in values.values()):
        raise ModelError("rope_parameters that differ from layer to layer are not supported; accepted: one set for all")
    raw = convert("rope_scaling", values, RopeJson)
    theta = raw.rope_theta or config.rope_theta or DEFAULT_THETA
    if (raw.partial_rotary_factor or config.partial_rotary_factor or 1) != 1:
        raise ModelError("partial_rotary_factor is not supported; accepted: 1 (all of the head is rotated)")
    kind = raw.rope_type or raw.type or "default"
    if kind in ("default", "none"):
        return theta, None
    if kind not in KINDS:
        raise ModelError(f"rope_type {kind!r:.40} is not supported; accepted: {', '.join(KINDS)}")
    original = config.original_max_position_embeddings or raw.original_max_position_embeddings or max_position
    return theta, {"linear": _linear, "llama3": _llama3, "yarn": _yarn}[kind](raw, original, max_position)


def _linear(raw: RopeJson, original: int, max_position: int) -> RopeScaling:
    return RopeScaling(kind="linear", factor=_required(raw, "factor"))


def _llama3(raw: RopeJson, original: int, max_position: int) -> RopeScaling:
    low, high = _required(raw, "low_freq_factor"), _required(raw, "high_freq_factor")
    if low >= high:
        raise ModelError(f"rope_scaling: low_freq_factor {low} must be below high_freq_factor {high}")
    return RopeScaling(
        kind="llama3",
        factor=_required(raw, "factor"),
        original_max_position=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(raw: RopeJson, original: int, max_position: int) -> RopeScaling:
    both = bool(raw.mscale and raw.mscale_all_dim)  # one without the other has no meaning
    return RopeScaling(
        kind="yarn",
        factor=raw.factor or max_position / original,
        original_max_position=original,
        beta_fast=raw.beta_fast or 32.0,
        beta_slow=raw.beta_slow or 1.0,
        attention_factor=raw.attention_factor,
        mscale=raw.mscale if both else None,
        mscale_all_dim=raw.mscale_all_dim if both else None,
        truncate=raw.truncate,
    )


def _required(raw: RopeJson, name: str) -> float:
    value = getattr(raw, name)
    if value is None:
        raise ModelError(
            f"rope_scaling of type {raw.rope_type or raw.type} lacks {name}; a positive number was expected"
        )
    return value
