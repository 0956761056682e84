"""Which layer is the first to differ: what comes out of each part of two models that run the same requests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from octavo.layers.embedding import LMHead
from octavo.models.decoder import DecoderModel

TOLERANCE = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.06, "rounded": 0.12, "int8": 0.15, "fp8": 0.3}
"""What `octavo.check.pairs.RELATIVE` has, too -> relative root mean square of the difference that rounding may make by
the end of a model."""

Recorded = dict[str, list[Tensor]]
"""Part -> what came out of it in each step, float32 ``[T, H]`` on the host."""


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """A part of the model.

    Attributes:
        relative_rms: of each token's difference, relative to the token's own root mean square; over the tokens of a
            step; of the worst step.
        largest: of the absolute differences.
    """

    name: str
    relative_rms: float
    largest: float


@dataclass(frozen=True, slots=True)
class LayerReport:
    """All parts in the order in which they are computed; ``first`` is the first that differs, or None."""

    tolerance: float
    parts: list[LayerDifference]
    first: str | None

    @property
    def differs(self) -> bool:
        return self.first is not None


@contextmanager
def record(model: DecoderModel) -> Iterator[Recorded]:
    """Keep what comes out of the parts of ``model`` while the block runs. No CUDA graph may replay them."""
    recorded: Recorded = {}
    hooks = [part.register_forward_hook(_recorder(recorded.setdefault(name, []))) for name, part in parts_of(model)]
    with _recording_products(model.lm_head, recorded.setdefault("lm_head", [])):
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def _recording_products(head: LMHead, where: list[Tensor]) -> Iterator[None]:
    """Of a head, ``product`` is recorded: some runners call it and not the module, where a hook would see it."""
    original = head.product

    def product(hidden: Tensor) -> Tensor:
        logits = original(hidden)
        where.append(logits.detach().float().cpu().clone())
        return logits

    head.product = product  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.product


def parts_of(model: DecoderModel) -> Iterator[tuple[str, nn.Module]]:
    """The embedding, the parts of each layer and the decoder as a whole."""
    yield "embed_tokens", model.model.embed_tokens
    for i, layer in enumerate(model.model.layers):
        parts = {name: part for name, part in layer.named_children() if name in ("self_attn", "mlp")}
        yield from ((f"layers.{i}.{name}", part) for name, part in parts.items())
        if len(parts) < 2:
            yield f"layers.{i}", layer
    yield "norm", model.model


def compare_layers(ours: Recorded, reference: Recorded, dtype: str) -> LayerReport:
    """Compare step by step, part by part. Steps after the two texts have parted are left out: their inputs differ.

    A part that one side computed in fewer steps, or that neither computed, is infinitely far.
    """
    steps = _same_steps(ours, reference)
    found = [
        _difference(name, ours[name][:steps], reference[name][:steps])
        if 0 < len(ours[name]) == len(reference[name])
        else LayerDifference(name, math.inf, math.inf)
        for name in reference
    ]
    limit = TOLERANCE[dtype]
    first = next((part.name for part in found if not part.relative_rms <= limit), None)
    return LayerReport(limit, found, first)


def _recorder(where: list[Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        """What a part adds to the stream, which the next part may overwrite: so a copy. The stream itself would hide a
        small part's error behind what others have added.
        """
        own = output if isinstance(output, Tensor) else output[0]
        where.append(own.detach().float().cpu().clone())

    return hook


def _same_steps(ours: Recorded, reference: Recorded) -> int:
    """Steps whose input is the same: the embedded tokens tell."""
    a, b = ours["embed_tokens"], reference["embed_tokens"]
    pairs = zip(a, b, strict=False)
    same = next((i for i, (x, y) in enumerate(pairs) if x.shape != y.shape or not x.equal(y)), min(len(a), len(b)))
    return max(same, 1)


def _difference(name: str, ours: Sequence[Tensor], reference: Sequence[Tensor]) -> LayerDifference:
    worst, largest = 0.0, 0.0
    for a, b in zip(ours, reference, strict=False):
        gap = a - b
        # Token by token: the first one of a text often has numbers a thousand times as large as the others'.
        of_tokens = _rms(gap) / _rms(b).clamp(min=1e-30)
        relative = float(of_tokens.square().mean().sqrt())
        worst = relative if not relative <= worst else worst  # a NaN is not <=
        largest = max(largest, float(gap.abs().max()))
    return LayerDifference(name, worst, largest)


def _rms(x: Tensor) -> Tensor:
    """Of each row ``[T]``."""
    return x.double().square().mean(-1).sqrt()
