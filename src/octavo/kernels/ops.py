"""The seam to the hardware: everything that a model asks a device to compute.

T is the number of tokens in a step, H the hidden size, I the intermediate size, Hq and Hk the numbers of
query and of key/value heads, D the size of a head. ``x`` and results have the model's dtype; sums inside are
at least float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer
from octavo.kernels.lora import LoraPlan, LoraStack
from octavo.kernels.packed import Operand
from octavo.kernels.packed_form import PackedForms
from octavo.kernels.recording import Recording
from octavo.kernels.sampling import LastTokens, Logprobs, Sampled


class Ops(ABC):
    """The operations of one device. `octavo.kernels.reference` defines what each must return.

    Attributes:
        graph_safe: a step of them can be recorded in a CUDA graph: none waits for the device.
    """

    graph_safe = False

    def ignores_nan_beyond_context(self, kv_cache: Sequence[KVLayer], num_heads: int, dtype: torch.dtype) -> bool:
        """Whether ``attention`` over such a cache, of queries of so many heads in ``dtype``, gives a row the same
        whatever keys and values are beyond its context, even NaN. They may be read, but leave no trace.
        """
        return False

    def compile_only(self, device: torch.device) -> AbstractContextManager[object]:
        """While this is entered, kernels that are compiled when they are first used are not run but only compiled, side
        by side: results mean nothing. When it is left, all of them are ready.
        """
        return nullcontext()

    def record(self, batch: ForwardBatch, compute: Callable[[], Tensor]) -> tuple[Tensor, Recording | None]:
        """Call ``compute``, which does with ``batch`` what is to be done again with others.

        Returns:
            What it returns, and how to do it again; None instead, if the backend cannot say.
        """
        return compute(), None

    def packed_forms(self) -> PackedForms | None:
        """What is needed to keep in a file what ``pack_linear`` makes; None: that is not worth it."""
        return None

    @abstractmethod
    def embedding(self, ids: Tensor, weight: Tensor) -> Tensor:
        """Rows of ``weight [V, H]`` for integer ``ids [T]``: ``[T, H]``."""

    @abstractmethod
    def pack_linear(self, weight: Operand) -> Operand:
        """``weight [out, in]`` in the form that ``linear`` multiplies with fastest: maybe as it is, maybe opaque."""

    @abstractmethod
    def pack_experts(self, weight: Operand, count: int, dtype: torch.dtype) -> Operand:
        """``weight [count * out, in]``, the matrices of all experts one above the other, in the form that ``experts``
        multiplies with fastest, as ``pack_linear`` does it. ``dtype``: of the model.
        """

    def multiplies(self, kind: str) -> bool:
        """Whether ``linear`` is at least as fast with a weight that a GGUF file has packed as ``kind`` ("Q4_K") as with
        a plain one. Such weights then stay packed when they are loaded; others are expanded.
        """
        return False

    @abstractmethod
    def linear(self, x: Tensor, weight: Operand, bias: Tensor | None = None) -> Tensor:
        """``x [T, in] @ weight [out, in].T + bias [out]``: ``[T, out]``. ``weight`` may be quantized, and may have been
        through ``pack_linear``.
        """

    def logits(self, x: Tensor, weight: Operand) -> Tensor:
        """``linear`` of the head: ``[S, V]`` in x's dtype; or float32, where the kernel has its sums so. Rounded to 16
        bits, likely tokens get equal logits: of SmolLM2's greedy tokens one in fifty is then another one.
        """
        return self.linear(x, weight)

    @abstractmethod
    def plan_lora(self, numbers: Tensor, max_loras: int) -> LoraPlan | None:
        """Sort a step's tokens by their adapters once, for ``lora_add`` of all layers.

        Args:
            numbers: ``[T]`` integers: each token's adapter in a `LoraStack`, from 1; 0: none.
            max_loras: how many adapters a `LoraStack` has room for.

        Returns:
            The plan; or None if it is known that no token has an adapter.
        """

    @abstractmethod
    def lora_add(self, y: Tensor, x: Tensor, stack: LoraStack, plan: LoraPlan) -> Tensor:
        """Add what each token's adapter makes of x to a linear layer's result (arXiv:2106.09685).

        Args:
            y: ``[T, N]``; may be overwritten.
            x: ``[T, K]``, the layer's input.
            stack: the layer's adapters.
            plan: of this step, from ``plan_lora`` of the same ops.

        Returns:
            ``y[t] + scale * (x[t] @ A.T) @ B.T`` part by part, with the A, B and scale of t's adapter: ``[T, N]``.
        """

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension (arXiv:1910.07467)."""

    @abstractmethod
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``(rms_norm(x + residual), x + residual)``. May overwrite both inputs.

        The sum is float32 whatever ``x`` is, and so is ``residual`` after the first call: a bfloat16 sum over many
        layers loses the small updates (measured on SmolLM2: float32 takes 29% off the error of the logits).
        """

    @abstractmethod
    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` of ``gate_up [T, 2I]``, whose first half is the gate: ``[T, I]`` (SwiGLU,
        arXiv:2002.05202).
        """

    @abstractmethod
    def gelu_mul(self, gate_up: Tensor, *, approximate: bool) -> Tensor:
        """``gelu(gate) * up`` of ``gate_up [T, 2I]``: ``[T, I]`` (GeGLU, arXiv:2002.05202).

        ``approximate``: GELU by tanh instead of erf (arXiv:1606.08415).
        """

    @abstractmethod
    def gelu(self, x: Tensor, *, approximate: bool) -> Tensor:
        """``x * P(X <= x)`` of a standard normal X; ``approximate``: by tanh. May overwrite x."""

    @abstractmethod
    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """``(layer_norm(x + residual), x + residual)`` as ``add_rms_norm``, with LayerNorm (arXiv:1607.06450):
        ``(s - mean(s)) / sqrt(var(s) + eps) * weight + bias``. A ``residual`` of None is 0.
        """

    @abstractmethod
    def top_experts(self, logits: Tensor, k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
        """The k likeliest experts of each token (arXiv:1701.06538).

        Args:
            logits: ``[T, E]``.
            k: how many.
            normalise: scale a token's probabilities to sum up to 1.

        Returns:
            Their probabilities ``[T, k]`` float32, and their numbers ``[T, k]`` int64.
        """

    @abstractmethod
    def experts(self, x: Tensor, gate_up: Operand, down: Operand, weights: Tensor, ids: Tensor) -> Tensor:
        """Each token through its own experts, which are gated feed-forward layers; their results are summed up.

        Args:
            x: ``[T, H]``.
            gate_up: ``[E * 2I, H]``: for each expert the gate's rows, then those of the values. May be quantized, and
                may have been through ``pack_experts``, as ``down``.
            down: ``[E * H, I]``.
            weights: ``[T, k]`` float32, by which results are multiplied.
            ids: ``[T, k]`` int64: which experts, all different.

        Returns:
            ``sum_j weights[t, j] * down_e(silu(gate_e(x_t)) * up_e(x_t))`` with ``e = ids[t, j]``: ``[T, H]``.
        """

    def add_norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Operand,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(linear(rms_norm(x + residual)), x + residual)``; a ``residual`` of None is 0. May overwrite both inputs.

        One operation, because for a few rows a fused kernel reads the weight while it normalises.
        """
        normed, residual = self.add_norm(x, residual, norm_weight, eps)
        return self.linear(normed, weight, bias), residual

    def add_norm_gate_up(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Operand,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(silu_mul(linear(rms_norm(x + residual))), x + residual)``, as ``add_norm_linear`` does it."""
        normed, residual = self.add_norm(x, residual, norm_weight, eps)
        return self.silu_mul(self.linear(normed, weight, bias)), residual

    def add_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``(rms_norm(x + residual), x + residual)``, as ``add_rms_norm``; a ``residual`` of None is 0."""
        return (self.rms_norm(x, weight, eps), x) if residual is None else self.add_rms_norm(x, residual, weight, eps)

    @abstractmethod
    def rotate_and_store(
        self,
        qkv: Tensor,
        plan: AttentionPlan,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        kv: KVLayer,
    ) -> Tensor:
        """Normalise and rotate queries and keys, write keys and values into the cache, return the queries.

        One operation, because a fused kernel reads ``qkv`` once.

        Args:
            qkv: ``[T, (Hq + 2 Hk) * D]``: queries, keys, values. May be overwritten.
            plan: of this step, which knows the tokens' positions and where in the cache they belong.
            cos_sin: ``[max_positions, D]`` float32: D/2 cosines, then D/2 sines (RoPE, arXiv:2104.09864,
                halves rotated).
            q_norm, k_norm: ``[D]`` RMSNorm weights applied to each head before rotation, or both None.
            eps: of these norms.
            kv: the layer's cache; Hk and D are read from its shape.

        Returns:
            Queries ``[T, Hq, D]``; valid until the next call.
        """

    @abstractmethod
    def plan_attention(self, batch: ForwardBatch) -> AttentionPlan:
        """Do the index arithmetic of a step once, for ``rotate_and_store`` and ``attention`` of all layers."""

    @abstractmethod
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
        """Causal attention of each row's queries over its cached context.

        A query at position p sees the positions ``max(0, p - window + 1)`` to ``p``. Query head h reads
        key/value head ``h // (Hq / Hk)``.

        Args:
            q: ``[T, Hq, D]``, rotated; the keys and values of the same tokens are in the cache already.
            kv: the layer's cache.
            plan: of this step, from ``plan_attention`` of the same ops.
            scale: factor of the scores.
            window: how many positions a query sees, itself included; None: all.
            soft_cap: scores become ``soft_cap * tanh(scores / soft_cap)`` if given (arXiv:2408.00118).

        Returns:
            ``[T, Hq * D]``.
        """

    def attend(
        self,
        qkv: Tensor,
        plan: AttentionPlan,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        kv: KVLayer,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """``rotate_and_store``, then ``attention``: ``qkv [T, (Hq + 2 Hk) * D]`` to ``[T, Hq * D]``.

        One operation, because a fused kernel does both for decoding, and because the new keys and values, which
        are all that a fresh prompt attends to, stand in ``qkv``.
        """
        q = self.rotate_and_store(qkv, plan, cos_sin, q_norm, k_norm, eps, kv)
        return self.attention(q, kv, plan, scale=scale, window=window, soft_cap=soft_cap)

    @abstractmethod
    def sample(
        self, logits: Tensor, params: Tensor, last: LastTokens | None = None, *, filters: bool = True
    ) -> Sampled:
        """Choose a token for each row: greedily, or by temperature, min-p, top-k, then top-p.

        A row's token depends on its logits and parameters alone, to the bit, whatever else is in the batch. Ties go
        to the lower token id. The same seed draws the same token on the same backend; two backends may draw
        different ones, from the same distribution.

        Args:
            logits: ``[S, V]`` float32 or the model's dtype; left as they are.
            params: ``[S, PARAM_WORDS]`` int32, records of `octavo.kernels.sampling.PARAMS`.
            last: where the tokens are written, too.
            filters: False: no row with a temperature above 0 has min-p, top-k or top-p, so that a backend may leave
                out the work of looking.
        """

    @abstractmethod
    def apply_token_bitmask(self, logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
        """Set the logits of tokens that a row may not get to -inf, in place.

        Args:
            logits: ``[S, V]`` float32, rows contiguous.
            rows: ``[R]`` int64: which rows of it, none twice.
            bitmask: ``[R, ceil(V / 32)]`` int32: bit i % 32 of word i // 32 says whether the row may get token i.
        """

    @abstractmethod
    def gather_logprobs(self, logits: Tensor, token_ids: Tensor, k: int) -> Logprobs:
        """Log-softmax of ``logits [N, V]`` float32 at ``token_ids [N]`` int64 and at the ``k`` likeliest tokens.

        The rank of a token is one more than the number of tokens that are likelier; tied tokens share theirs.
        """
