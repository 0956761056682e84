"""Rotary embeddings as ``config.json`` describes them, in the older and the newer spelling."""

from __future__ import annotations

from typing import Any, NamedTuple

from octavo.config import RopeScaling
from octavo.errors import ModelError
from octavo.weights.hf_families import Family
from octavo.weights.hf_json import ConfigJson, RopeJson, convert

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


class Rope(NamedTuple):
    """As in `octavo.config.ModelConfig`, which says what the fields mean."""

    theta: float
    scaling: RopeScaling | None
    rotary_dim: int | None
    local_theta: float | None


def rope(config: ConfigJson, family: Family, max_position: int, head_dim: int) -> Rope:
    """Rotary embeddings of ``config``; ``max_position`` is its ``max_position_embeddings``.

    Older files have ``rope_theta`` and ``rope_scaling`` side by side, transformers 5 writes both into
    ``rope_parameters``. Raises ``ModelError`` for a kind of scaling that Octavo does not know.
    """
    values, local_values = _parameters(config, family)
    raw = convert("rope_scaling", values, RopeJson)
    scaling = _scaling(config, family, raw, max_position)
    theta = raw.rope_theta or config.rope_theta or family.theta
    return Rope(theta, scaling, _rotary_dim(config, family, raw, head_dim), _local_theta(config, family, local_values))


def _parameters(config: ConfigJson, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of layers that see everything, and of those with a window, where these have their own."""
    values = config.rope_scaling or config.rope_parameters or {}
    if not any(isinstance(value, dict) for value in values.values()):
        return values, {}
    parts = [values.get(name) or {} for name in ("full_attention", "sliding_attention")]
    if family.local_theta is None or not all(isinstance(part, dict) for part in parts):
        raise ModelError("rope_parameters that differ from layer to layer are not supported; accepted: one set for all")
    return parts[0], parts[1]


def _local_theta(config: ConfigJson, family: Family, values: dict[str, Any]) -> float | None:
    if family.local_theta is None:
        return None
    raw = convert("rope_parameters of sliding_attention", values, RopeJson)
    if (raw.rope_type or "default") != "default":
        raise ModelError(f"rope_type {raw.rope_type!r:.40} of sliding_attention is not supported; accepted: default")
    return raw.rope_theta or config.rope_local_base_freq or family.local_theta


def _rotary_dim(config: ConfigJson, family: Family, raw: RopeJson, head_dim: int) -> int | None:
    share = raw.partial_rotary_factor or config.partial_rotary_factor or 1
    if share == 1:
        return None
    if not family.partial_rotation or not 0 < share < 1:
        raise ModelError("partial_rotary_factor is not supported; accepted: 1 (all of the head is rotated)")
    return int(head_dim * share)


def _scaling(config: ConfigJson, family: Family, raw: RopeJson, max_position: int) -> RopeScaling | None:
    kind = raw.rope_type or raw.type or "default"
    if kind == "su" or (kind == "yarn" and family.model_type == "phi3"):  # as early files of Phi-3 have it
        kind = "longrope"
    if kind in ("default", "none"):
        return None
    if kind not in KINDS:
        raise ModelError(f"rope_type {kind!r:.40} is not supported; accepted: {', '.join(KINDS)}")
    original = config.original_max_position_embeddings or raw.original_max_position_embeddings or max_position
    make = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
    return make[kind](raw, original, max_position)


def _dynamic(raw: RopeJson, original: int, max_position: int) -> RopeScaling:
    return RopeScaling(kind="dynamic", factor=_required(raw, "factor"), original_max_position=max_position)


def _longrope(raw: RopeJson, original: int, max_position: int) -> RopeScaling:
    if not raw.short_factor or not raw.long_factor:
        raise ModelError(
            "rope_scaling of type longrope lacks short_factor or long_factor; lists of numbers were expected"
        )
    return RopeScaling(
        kind="longrope",
        factor=raw.factor or max_position / original,
        original_max_position=original,
        attention_factor=raw.attention_factor,
        factors=tuple(raw.short_factor),
        long_factors=tuple(raw.long_factor),
    )


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
