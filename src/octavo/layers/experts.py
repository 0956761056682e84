"""The feed-forward layer as a mixture of experts (arXiv:1701.06538, 2401.04088): each token goes through a few of many.

A shard has a part of every expert's intermediate features. Weights of all experts are one matrix, one above the other,
so that a kernel finds an expert by its number.
"""

from __future__ import annotations

from torch import Tensor, nn

from octavo.config import ExpertsConfig, ModelConfig
from octavo.errors import ModelError
from octavo.kernels.lora import LoraPlan
from octavo.kernels.packed import PackedWeight
from octavo.kernels.packed_parts import stack_rows
from octavo.layers.build import Build
from octavo.layers.norm import Norm
from octavo.layers.weight import ALL, Matrix, Place, Weight
from octavo.quantization.dummy import random_weight
from octavo.quantization.pack import quantize
from octavo.quantization.schemes import Scheme


class Router(nn.Module):
    """Chooses each token's experts: ``x [T, H]`` to weights and numbers ``[T, k]``. Every shard has all of it."""

    def __init__(self, build: Build, hidden: int, experts: ExpertsConfig) -> None:
        super().__init__()
        self.ops, self.experts = build.ops, experts
        shape = (experts.count, hidden)
        self.weight = Weight(build, shape, [Place(shape)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.ops.linear(x, self.weight)
        return self.ops.top_experts(logits, self.experts.per_token, normalise=self.experts.normalise)


class ExpertsMatrix(Matrix):
    """Matrices of ``count`` experts, one above the other: ``[count * rows, columns]``."""

    def __init__(self, build: Build, count: int, shape: tuple[int, int], places: list[Place]) -> None:
        super().__init__(build)
        self.count = count
        self.weight = Weight(build, (count * shape[0], shape[1]), places, lazily=build.packing.active)

    def _quantized(self, scheme: Scheme) -> PackedWeight:
        """As any other matrix; but rows that share a scale are all of one expert."""
        if scheme.rows == 1:
            return super()._quantized(scheme)
        with self._pieces() as pieces:
            stacked = stack_rows([quantize(expert, scheme) for expert in pieces.chunk(self.count)])
        assert isinstance(stacked, PackedWeight)
        return stacked

    def fill_random(self, pattern: Tensor) -> None:
        if self.scheme is None or self.scheme.rows == 1:
            super().fill_random(pattern)
        else:
            n, k = self.weight.full_shape
            one = random_weight((n // self.count, k), self.scheme, pattern, self.weight.device)
            self._replace(stack_rows([one] * self.count))

    def pack(self) -> None:
        if not self.is_given:
            self._pack(self.ops.pack_experts(self.operand, self.count, self.weight.dtype))


class ExpertsMLP(nn.Module):
    """The sum of ``p * down(silu(gate(y)) * up(y))`` over y's experts, with ``y = norm(x + residual)``."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__()
        if (experts := config.experts) is None or config.hidden_act != "silu":
            raise ModelError(f"no experts, or experts with {config.hidden_act}; experts with silu were expected")
        part = build.shard.part(experts.size, "intermediate features of an expert")
        hidden, size, count = config.hidden_size, part.stop - part.start, experts.count
        self.ops, self.shard = build.ops, build.shard
        self.gate = Router(build, hidden, experts)
        self.gate_up_proj = ExpertsMatrix(build, count, (2 * size, hidden), _gate_up(experts, hidden, part))
        self.down_proj = ExpertsMatrix(build.for_sensitive, count, (hidden, size), _down(experts, hidden, part))

    def forward(
        self, x: Tensor, residual: Tensor | None, norm: Norm, lora: LoraPlan | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer's result, and ``x + residual``. No adapter has anything for experts (``lora``)."""
        x, residual = norm.add(x, residual)
        weights, ids = self.gate(x)
        out = self.ops.experts(x, self.gate_up_proj.operand, self.down_proj.operand, weights, ids)
        return self.shard.all_reduce(out), residual


def _gate_up(experts: ExpertsConfig, hidden: int, part: slice) -> list[Place]:
    """For each expert the gate's rows, then those of the values."""
    size = part.stop - part.start
    names = [f"experts.{e}.{name}" for e in range(experts.count) for name in ("gate_proj", "up_proj")]
    rows = (slice(i * size, (i + 1) * size) for i in range(len(names)))
    return [Place((experts.size, hidden), (part,), r, name) for r, name in zip(rows, names, strict=True)]


def _down(experts: ExpertsConfig, hidden: int, part: slice) -> list[Place]:
    rows = (slice(e * hidden, (e + 1) * hidden) for e in range(experts.count))
    return [Place((hidden, experts.size), (ALL, part), r, f"experts.{e}.down_proj") for e, r in enumerate(rows)]
