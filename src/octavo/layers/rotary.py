"""Rotary position embedding (arXiv:2104.09864): the table of angles, and how it is stretched for longer
contexts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError

KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope", "factors")
"""Of scaling."""


def layer_tables(config: ModelConfig, max_positions: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """The rotary table of each layer, as ``cos_sin_table`` makes it; layers with the same angles share one.

    Layers that do not rotate have angles of 0, and so the same kernels.
    """
    make = {
        "none": lambda: _table(torch.zeros(config.head_dim // 2), 1.0, max_positions, device),
        "local": lambda: cos_sin_table(_local(config), max_positions, device),
        "global": lambda: cos_sin_table(config, max_positions, device),
    }
    kinds = [_kind(config, layer) for layer in range(config.num_layers)]
    tables = {kind: make[kind]() for kind in set(kinds)}
    return [tables[kind] for kind in kinds]


def _kind(config: ModelConfig, layer: int) -> str:
    if layer in config.no_rope_layers:
        return "none"
    slides = config.sliding_windows[layer] is not None
    return "local" if slides and config.local_rope_theta is not None else "global"


def _local(config: ModelConfig) -> ModelConfig:
    """With the base of the layers that have a window."""
    return replace(config, rope_theta=config.local_rope_theta or config.rope_theta, rope_scaling=None)


def cos_sin_table(config: ModelConfig, max_positions: int, device: torch.device | str = "cpu") -> Tensor:
    """``[max_positions, head_dim]`` float32: the cosines of each position's ``head_dim / 2`` angles, then
    their sines. Dimensions that are not rotated have an angle of 0.

    Raises ``ModelError`` for a kind of scaling that is not known.
    """
    frequencies, factor = inverse_frequencies(config, max_positions)
    if not (frequencies.isfinite().all() and math.isfinite(factor)):
        raise ModelError(f"rope_theta={config.rope_theta} with {config.rope_scaling} gives no finite frequencies")
    return _table(frequencies, factor, max_positions, device, config.head_dim // 2 - len(frequencies))


def _table(
    frequencies: Tensor, factor: float, max_positions: int, device: torch.device | str, num_still: int = 0
) -> Tensor:
    """``num_still``: how many angles of 0 follow those of ``frequencies``."""
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
    still = torch.ones(max_positions, num_still)
    return torch.cat((angles.cos() * factor, still, angles.sin() * factor, 0 * still), dim=-1).to(device)


def rotated_pairs_first(head_dim: int, rotary_dim: int) -> list[int]:
    """In which order a head's dimensions must stand for a partial rotation: entry i is where dimension i is taken from.

    Checkpoints pair dimensions i and i + rotary_dim / 2 and leave those from rotary_dim on as they are; kernels pair i
    and i + head_dim / 2. Queries and keys that are permuted alike have the same products.
    """
    half, end = rotary_dim // 2, (rotary_dim + head_dim) // 2
    parts = (range(half), range(rotary_dim, end), range(half, rotary_dim), range(end, head_dim))
    return [dimension for part in parts for dimension in part]


def inverse_frequencies(config: ModelConfig, max_positions: int = 0) -> tuple[Tensor, float]:
    """Radians per position ``[rotary_dim / 2]`` float32, and the factor by which cosines and sines are
    multiplied.

    ``max_positions`` is how long requests can grow: "dynamic" and "longrope" have other angles for long ones. As keys
    stay in the cache when a request grows, its angles must not change on the way.
    """
    dim, scaling = _rotary_dim(config), config.rope_scaling
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / config.rope_theta**exponents
    if scaling is None:
        return plain, 1.0
    match scaling.kind:
        case "linear":
            return plain / scaling.factor, 1.0
        case "dynamic":
            return _dynamic(exponents, scaling, config, max_positions), 1.0
        case "factors":
            return plain / _factors(scaling.factors, len(plain)), 1.0
        case "longrope":
            return _longrope(plain, scaling, max_positions)
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(plain, scaling, config), _yarn_attention_factor(scaling)
    raise ModelError(f"rope scaling {scaling.kind!r} is not supported; accepted: {', '.join(KINDS)}")


def _rotary_dim(config: ModelConfig) -> int:
    return config.rotary_dim or config.head_dim


def _dynamic(exponents: Tensor, scaling: RopeScaling, config: ModelConfig, max_positions: int) -> Tensor:
    """NTK-aware: a larger base for more positions than the model was trained on, as far as requests can grow."""
    factor, original = _needed(scaling, "factor", "original_max_position")
    dim, length = _rotary_dim(config), max(max_positions, original)
    if dim < 4 and length > original:
        raise ModelError(f"{dim} rotated dimensions; dynamic rope scaling needs 4 or more")
    stretch = (factor * length / original - (factor - 1)) ** (dim / (dim - 2)) if dim > 2 else 1.0
    return 1.0 / (config.rope_theta * stretch) ** exponents


def _longrope(plain: Tensor, scaling: RopeScaling, max_positions: int) -> tuple[Tensor, float]:
    """LongRoPE (arXiv:2402.13753): each frequency has its own divisor, found by search; one set of them for requests
    within the original context and one for longer ones.
    """
    factor, original = _needed(scaling, "factor", "original_max_position")
    factors = scaling.long_factors if max_positions > original else scaling.factors
    attention = scaling.attention_factor
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return plain / _factors(factors, len(plain)), attention


def _factors(factors: tuple[float, ...] | None, count: int) -> Tensor:
    if factors is None or len(factors) != count:
        raise ModelError(f"the model has {len(factors or ())} rope factors; {count} were expected")
    return torch.tensor(factors)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1 (arXiv:2407.21783): slow frequencies are divided by the factor, fast ones kept, others
    blended.
    """
    factor, original, low, high = _needed(
        scaling, "factor", "original_max_position", "low_freq_factor", "high_freq_factor"
    )
    turns = original * plain / (2 * math.pi)  # full turns within the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / factor


def _yarn(plain: Tensor, scaling: RopeScaling, config: ModelConfig) -> Tensor:
    """YaRN (arXiv:2309.00071), "NTK by parts": a linear ramp over dimensions from kept to divided
    frequencies.
    """
    factor, original = _needed(scaling, "factor", "original_max_position", "beta_fast", "beta_slow")[:2]
    dim = _rotary_dim(config)
    if config.rope_theta <= 1:
        raise ModelError(f"rope_theta is {config.rope_theta}; yarn needs more than 1")

    def dimension(turns: float) -> float:
        """The (fractional) index of the frequency that makes so many turns within the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(len(plain)) - low) / (high - low or 0.001)
    divide = ramp.clamp(0, 1)
    return (1 - divide) * plain + divide * plain / factor


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    """What makes up for the longer context's flatter softmax: it scales queries and keys alike (section
    3.4).
    """
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _needed(scaling: RopeScaling, *names: str) -> list[float]:
    missing = [name for name in names if not (getattr(scaling, name) or 0) > 0]
    if missing:
        raise ModelError(f"rope scaling {scaling.kind!r} lacks {', '.join(missing)}; positive numbers were expected")
    return [float(getattr(scaling, name)) for name in names]
