"""Rotary position embedding (arXiv:2104.09864): the table of angles, and how it is stretched for longer
contexts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError


def cos_sin_table(config: ModelConfig, max_positions: int, device: torch.device | str = "cpu") -> Tensor:
    """``[max_positions, head_dim]`` float32: the cosines of each position's ``head_dim / 2`` angles, then
    their sines.

    Raises ``ModelError`` for a kind of scaling that is not known.
    """
    frequencies, factor = inverse_frequencies(config)
    if not (frequencies.isfinite().all() and math.isfinite(factor)):
        raise ModelError(f"rope_theta={config.rope_theta} with {config.rope_scaling} gives no finite frequencies")
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
    return (torch.cat((angles.cos(), angles.sin()), dim=-1) * factor).to(device)


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians per position ``[head_dim / 2]`` float32, and the factor by which cosines and sines are
    multiplied.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    match scaling.kind:
        case "linear":
            return plain / scaling.factor, 1.0
        case "factors":
            return plain / _factors(scaling, len(plain)), 1.0
        case "llama3":
            return _llama3(plain, scaling), 1.0
        case "yarn":
            return _yarn(plain, scaling, config), _yarn_attention_factor(scaling)
    raise ModelError(f"rope scaling {scaling.kind!r} is not supported; accepted: linear, llama3, yarn, factors")


def _factors(scaling: RopeScaling, count: int) -> Tensor:
    if scaling.factors is None or len(scaling.factors) != count:
        raise ModelError(f"the model has {len(scaling.factors or ())} rope factors; {count} were expected")
    return torch.tensor(scaling.factors)


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
    if config.rope_theta <= 1:
        raise ModelError(f"rope_theta is {config.rope_theta}; yarn needs more than 1")

    def dimension(turns: float) -> float:
        """The (fractional) index of the frequency that makes so many turns within the original context."""
        return config.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
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
