"""Results that do not depend on the batch: a request's logits are the same, to the bit, alone and among others.

The rounding of a sum depends on its order, and a fast backend chooses the order by how many rows there are: another
kernel for one row than for many, for decoding than for prompts, for a fresh prompt than for one with a cached prefix.
Here each sum has one order, whatever step computes it:

- Products take the kernel of `matmul` with the same tile for any number of rows, also for one. Norms are kernels of
  their own before them; a program takes whole rows, cut by the row's length alone.
- Attention takes the tiles of `prefill_attention` for all rows, also for those that decode, always reads the cache, and
  always with the same settings. Tiles of keys begin at multiples of their size, counted from the request's first
  token, so a query takes in the same keys in the same order wherever its step began. Keys that it does not see weigh 0
  and scale what was summed before by 1: neither changes a bit. A tile of keys may be masked in one step and not in
  another; both loops of the kernel compile to the same arithmetic, which tests on the device hold on to.
- Adapters' products are cut as for few tokens, and the stretches of their sums are added in order.
- Rotation, activation and the embedding know one token only; sampling and log-probabilities cut a row by its length, or
  where they do not, take maxima and sums of whole numbers, which have no order.

What a step's place in a batch does change is speed alone. Two GPUs of different kinds give different bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer, own_plan
from octavo.kernels.lora import LoraPlan
from octavo.kernels.ops import Ops
from octavo.kernels.packed import Operand, PackedWeight
from octavo.kernels.triton import experts, lora, matmul, prefill_attention, quantized
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.prefill_attention import PrefillSettings


class DeterministicPlan(TritonPlan):
    """A plan that cuts all rows into tiles of queries, those with one query, too."""

    def __init__(self, batch: ForwardBatch) -> None:
        super().__init__(batch, deterministic=True)
        self._one_each: Tensor | None = None

    def all_tiles(self, queries: int) -> Tensor | None:
        """int32 ``[tiles, 2]``: row and first query of each tile of ``queries`` queries."""
        if self.max_queries > 1:
            return self.tiles(queries, "all")
        if self._one_each is None:  # made on the device: what is recorded in a CUDA graph may not read the host
            row = torch.arange(self.num_decode_rows, dtype=torch.int32, device=self.positions.device)
            self._one_each = torch.stack([row, torch.zeros_like(row)], dim=1)
        return self._one_each


class DeterministicOps(TritonOps):
    """`TritonOps` with one order for each sum. One object serves one thread."""

    def linear(self, x: Tensor, weight: Operand, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, PackedWeight):
            return quantized.linear_in_one_order(x, weight, bias)
        return matmul.linear(x, weight, bias)

    def experts(self, x: Tensor, gate_up: Operand, down: Operand, weights: Tensor, ids: Tensor) -> Tensor:
        # As for a single choice, which wastes least where a row decodes.
        return experts.experts(x, gate_up, down, weights, ids, cut_for=1)

    def plan_lora(self, numbers: Tensor, max_loras: int) -> LoraPlan | None:
        return lora.SortedLora(numbers, max_loras, one_cut=True)

    # What the faster backend fuses is put together of its parts again.
    add_norm_linear = Ops.add_norm_linear
    add_norm_gate_up = Ops.add_norm_gate_up
    attend = Ops.attend

    def plan_attention(self, batch: ForwardBatch) -> AttentionPlan:
        return DeterministicPlan(batch)

    def attention(
        self,
        q: Tensor,
        kv: KVLayer,
        plan: AttentionPlan,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        own = own_plan(plan, DeterministicPlan)
        q = q if q.stride()[1:] == (q.shape[2], 1) else q.contiguous()
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        group = q.shape[1] // kv.keys.shape[1]
        chosen = attention_settings(group, q.shape[2], q.dtype, q.device)
        tiles = own.all_tiles(prefill_attention.queries_per_tile(chosen, group))
        if tiles is not None:
            prefill_attention.attend_pages(q, kv, out, own, tiles, Scores(scale, window, soft_cap), chosen)
        return out


def attention_settings(group: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> PrefillSettings:
    """The settings for all rows: those of a single query, whose small tiles waste least where a row decodes."""
    return prefill_attention.settings(1, group, head_dim, dtype, device, deterministic=False)
