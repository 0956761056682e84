"""Linear layers: whole, fused from several tensors of the checkpoint, and split over shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.errors import ModelError
from octavo.kernels.lora import LoraPlan, LoraStack
from octavo.kernels.ops import Ops
from octavo.layers.build import Build
from octavo.layers.norm import Norm, RMSNorm
from octavo.layers.weight import ALL, Matrix, Place, Weight
from octavo.parallel import Shard


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the checkpoint that becomes rows of a fused weight: its name, its rows, and those this
    shard has.
    """

    module: str
    rows: int
    part: slice

    @property
    def size(self) -> int:
        return self.part.stop - self.part.start


class AdaptedLinear(Matrix):
    """A linear layer that may have adapters.

    Attributes:
        lora: this shard's part of its adapters, in the order of the weight's places; None: the build has no room for
            any.
    """

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        self.lora: LoraStack | None = None

    def product(self, x: Tensor, bias: Tensor | None, lora: LoraPlan | None) -> Tensor:
        """This shard's ``x @ weight.T + bias``, and what the tokens' adapters add."""
        y = self.multiply(x, bias)
        return y if lora is None or self.lora is None else self.ops.lora_add(y, x, self.lora, lora)

    def _make_room(self, build: Build) -> None:
        """For the adapters of the weight, which is there."""
        if build.lora is not None:
            n, k = self.weight.full_shape
            parts = [len(range(n)[place.rows]) for place in self.weight.places]
            self.lora = LoraStack.empty(build.lora, k, parts, build.dtype, build.device)


class ColumnLinear(AdaptedLinear):
    """``x [T, in] -> [T, out]``: several linear layers of the same input as one, each split over shards by
    its outputs.
    """

    def __init__(self, build: Build, inputs: int, outputs: Sequence[Output], *, bias: bool = False) -> None:
        super().__init__(build)
        size = sum(output.size for output in outputs)
        self.weight = Weight(build, (size, inputs), _places(outputs, (inputs,)), lazily=build.packing.active)
        self.bias = Weight(build, (size,), _places(outputs, ())) if bias else None
        self._make_room(build)

    def forward(self, x: Tensor, lora: LoraPlan | None = None) -> Tensor:
        return self.product(x, self.bias, lora)

    def after_norm(
        self, norm: Norm, x: Tensor, residual: Tensor | None, lora: LoraPlan | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(self(norm(x + residual)), x + residual)``; may overwrite both inputs. With adapters, which read what the
        norm gives, the two are not fused.
        """
        if lora is None and isinstance(norm, RMSNorm):
            return self.ops.add_norm_linear(x, residual, norm.weight, norm.eps, self.operand, self.bias)
        normed, residual = norm.add(x, residual)
        return self(normed, lora), residual


class QKVLinear(ColumnLinear):
    """Queries, keys and values in one product: ``[T, (Hq + 2 Hk) * D]``. A key/value head may serve several
    shards.
    """

    def __init__(
        self, build: Build, inputs: int, num_heads: int, num_kv_heads: int, head_dim: int, *, bias: bool
    ) -> None:
        q = build.shard.part(num_heads, "query heads")
        kv = kv_heads_of(build.shard, num_kv_heads)
        outputs = [_heads("q_proj", num_heads, q, head_dim)]
        outputs += [_heads(name, num_kv_heads, kv, head_dim) for name in ("k_proj", "v_proj")]
        super().__init__(build, inputs, outputs, bias=bias)
        self.num_heads, self.num_kv_heads = q.stop - q.start, kv.stop - kv.start


class GateUpLinear(ColumnLinear):
    """The gate and the values of a gated MLP in one product: ``[T, 2I]``; ``after_norm`` gates, too: ``[T, I]``."""

    def __init__(self, build: Build, inputs: int, size: int, *, bias: bool, activation: str = "silu") -> None:
        part = build.shard.part(size, "intermediate features")
        super().__init__(build, inputs, [Output(name, size, part) for name in ("gate_proj", "up_proj")], bias=bias)
        self.activation = activation

    def after_norm(
        self, norm: Norm, x: Tensor, residual: Tensor | None, lora: LoraPlan | None = None
    ) -> tuple[Tensor, Tensor]:
        """``activation(gate) * up`` of ``norm(x + residual)``, and ``x + residual``."""
        if lora is None and self.activation == "silu" and isinstance(norm, RMSNorm):
            return self.ops.add_norm_gate_up(x, residual, norm.weight, norm.eps, self.operand, self.bias)
        gate_up, residual = super().after_norm(norm, x, residual, lora)
        return gated(self.ops, self.activation, gate_up), residual


class RowLinear(AdaptedLinear):
    """``x [T, in] -> [T, out]``, split over shards by its inputs; their results are summed."""

    def __init__(self, build: Build, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(build)
        part = build.shard.part(inputs, "features")
        place = Place(shape=(outputs, inputs), source=(ALL, part))
        self.weight = Weight(build, (outputs, part.stop - part.start), [place], lazily=build.packing.active)
        self.bias = Weight(build, (outputs,), [Place(shape=(outputs,))]) if bias else None
        self._make_room(build)

    def forward(self, x: Tensor, lora: LoraPlan | None = None) -> Tensor:
        bias = self.bias if self.shard.rank == 0 else None  # the sum over shards must hold it once
        return self.shard.all_reduce(self.product(x, bias, lora))


def gated(ops: Ops, activation: str, gate_up: Tensor) -> Tensor:
    """``activation(gate) * up`` of ``gate_up [T, 2I]``: ``[T, I]``."""
    if activation == "silu":
        return ops.silu_mul(gate_up)
    return ops.gelu_mul(gate_up, approximate=activation == "gelu_tanh")


def kv_heads_of(shard: Shard, num_kv_heads: int) -> slice:
    """The key/value heads that a shard's query heads read: its own, or one that it has in common with
    others.
    """
    if num_kv_heads >= shard.size:
        return shard.part(num_kv_heads, "key/value heads")
    if shard.size % num_kv_heads:
        raise ModelError(f"{num_kv_heads} key/value heads cannot be shared by {shard.size} devices; use a multiple")
    head = shard.rank * num_kv_heads // shard.size
    return slice(head, head + 1)


def _heads(name: str, total: int, heads: slice, head_dim: int) -> Output:
    return Output(name, total * head_dim, slice(heads.start * head_dim, heads.stop * head_dim))


def _places(outputs: Sequence[Output], inputs: tuple[int, ...]) -> list[Place]:
    """Stack the shard's rows of each output; ``inputs`` is the rest of the shape."""
    places, row = [], 0
    for output in outputs:
        rows = slice(row, row + output.size)
        places.append(Place((output.rows, *inputs), (output.part,), rows, output.module))
        row = rows.stop
    return places
