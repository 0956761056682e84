"""The ways to quantize a weight on load or export, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.errors import UsageError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a matrix is quantized.

    Attributes:
        name: as the user says it.
        kind: "int8", "int4" or "fp8".
        group: inputs of an output that share a scale; None: all of them.
        fine_below: models with a smaller hidden size have groups of ``FINE`` (see `fitted`).
        fine_sensitive: what ``sensitive`` is for these models.
        rows: outputs that share a scale; None: all of them.
        quantizes_input: what the matrix is multiplied with is rounded, too, when it is multiplied.
        head: name of the scheme for the matrix that makes logits, None: this one.
        sensitive: name of the scheme for the matrices whose error costs a small model most, None: this one.
    """

    name: str
    kind: str
    group: int | None = None
    fine_below: int = 0
    fine_sensitive: str | None = None
    rows: int | None = 1
    quantizes_input: bool = False
    head: str | None = None
    sensitive: str | None = None

    def fitted(self, hidden_size: int) -> Scheme:
        """The scheme for a model of that hidden size: a small one gets smaller groups, and 8 bits where four cost it
        most. A weight of SmolLM2-135M's layers then takes 6.3 bits instead of 5; `octavo.quantization.round_int4` has
        what that is for.
        """
        if hidden_size >= self.fine_below:
            return self
        return replace(self, group=FINE, fine_below=0, sensitive=self.fine_sensitive)

    @property
    def for_head(self) -> Scheme:
        """How the matrix that makes logits is quantized."""
        return self if self.head is None else SCHEMES[self.head]

    @property
    def for_sensitive(self) -> Scheme:
        """How matrices are quantized whose error costs most: queries, keys and values, and what leads out of an MLP."""
        return self if self.sensitive is None else SCHEMES[self.sensitive]

    def group_for(self, k: int) -> int | None:
        """The group for ``k`` inputs: the scheme's own, or the next smaller one that divides ``k``; ``k`` where all
        share a scale. None: the scheme does not fit.
        """
        if self.kind == "fp8":
            return k if self.group is None else self.group  # a last block may be smaller
        if self.group is None:
            return k
        smaller = (group for group in GROUPS if group <= self.group and k % group == 0)
        return next(smaller, k if self.kind == "int8" else None)


GROUPS = (128, 64, 32, 16)
"""Sizes of a group, from the largest."""

FINE = 32

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="int8", kind="int8", group=64),
        Scheme(name="int8-channel", kind="int8"),
        *(Scheme(name=f"int8-g{group}", kind="int8", group=group) for group in GROUPS[:3]),
        Scheme(name="w8a8", kind="int8", quantizes_input=True),
        Scheme(name="fp8", kind="fp8"),
        Scheme(name="fp8-tensor", kind="fp8", rows=None),
        Scheme(name="fp8-block", kind="fp8", group=128, rows=128),
        Scheme(name="fp8-w8a8", kind="fp8", quantizes_input=True),
        Scheme(name="int4", kind="int4", group=128, fine_below=2048, fine_sensitive="int8", head="int8"),
        *(Scheme(name=f"int4-g{group}", kind="int4", group=group, head="int8") for group in GROUPS[:3]),
    )
}
"""Name -> scheme. ``octavo.config.QUANTIZATIONS`` has the same names, for who may not load this."""


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises ``UsageError`` for another, which lists them."""
    if name not in SCHEMES:
        raise UsageError(
            f"quantization {name!r} is not supported{nearest(name, SCHEMES)}; accepted: {', '.join(SCHEMES)}"
        )
    return SCHEMES[name]
