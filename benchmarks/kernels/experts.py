"""Grouped products of a mixture of experts on a GPU, plain and packed, with other tiles beside the chosen ones.

    python benchmarks/kernels/experts.py [--models A3B 8x7B] [--forms bf16 int4-g128 int8] [--no-search] [--json FILE]

For 1 to 8192 tokens that go to random experts: the product with gate and up, and that with down, in CUDA graphs. The
floor is the bytes of the experts that are asked for over 3.09 TB/s, or the operations over 782 TFLOP/s, whichever is
longer: what an H100 80GB reaches at best. Of many tokens "expanded" unpacks all matrices first and counts that in.
Results of all tiles are compared with those of the first one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from graph_timing import graph_us
from products import BYTES_PER_US

from helpers_small_weights import random_weight
from octavo.kernels.packed import Operand
from octavo.kernels.triton import experts, quantized_expand, quantized_experts, routing
from octavo.kernels.triton.experts import Tile
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.quantized_experts import ExpertWords
from octavo.kernels.triton.quantized_experts import Tile as WordsTile

OPS = TritonOps()
FLOPS_PER_US = 782e6
TOKENS = (1, 16, 64, 256, 1024, 2048, 8192)
TILES = [
    Tile(16, 32, 128, 4, 4),
    Tile(16, 64, 128, 4, 3),
    Tile(16, 128, 64, 4, 3),
    Tile(32, 64, 64, 4, 4),
    Tile(64, 64, 64, 4, 3),
    Tile(64, 128, 64, 4, 3),
    Tile(128, 64, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
]
WORDS_TILES = [
    WordsTile(16, 32, 8, 4, 4),
    WordsTile(16, 64, 4, 4, 4),
    WordsTile(16, 64, 8, 4, 3),
    WordsTile(16, 128, 4, 4, 3),
    WordsTile(32, 64, 4, 4, 3),
    WordsTile(64, 64, 4, 4, 3),
    WordsTile(128, 64, 4, 8, 3),
    WordsTile(128, 128, 4, 8, 3),
]
Launch = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A layer: ``top`` of ``count`` experts for each token."""

    count: int
    top: int
    hidden: int
    size: int


SHAPES = {"A3B": Shape(128, 8, 2048, 768), "8x7B": Shape(8, 2, 4096, 14336)}
"""Qwen3-30B-A3B, Mixtral-8x7B."""


@dataclass(frozen=True)
class Case:
    """One of the two products, of some tokens that were routed."""

    x: Tensor
    weight: Operand
    scales: Tensor | None
    out: Tensor
    counts: Tensor
    lists: Tensor
    share: int

    def plain(self, tile: Tile, weight: Tensor) -> None:
        experts.plain_product(self.x, weight, self.scales, self.out, self.counts, self.lists, self.share, tile)

    def packed(self, tile: WordsTile, weight: ExpertWords) -> None:
        routed = (self.scales, self.out, self.counts, self.lists, self.share, len(self.out))
        quantized_experts.product(self.x, weight, *routed, tile)

    def floor(self, shape: Shape) -> float:
        """Microseconds."""
        asked = int((self.counts > 0).sum())
        flops = 2 * len(self.out) * self.weight.shape[0] // shape.count * self.weight.shape[1]
        return max(self.weight.nbytes / shape.count * asked / BYTES_PER_US, flops / FLOPS_PER_US)

    def launches(self, shape: Shape) -> list[tuple[str, Launch]]:
        """What is tried, by name; the chosen one first."""
        choices, gated = len(self.out), self.scales is None
        plain = experts.choose(choices, shape.count, self.x.dtype)
        if isinstance(self.weight, Tensor):
            return self._tiles(self.plain, self.weight, (plain, *TILES), shape)
        words = self.weight
        assert isinstance(words, ExpertWords)
        tile = quantized_experts.choose(choices, shape.count, 2, gated=gated)
        ways = self._tiles(self.packed, words, (tile, *WORDS_TILES), shape)
        expanded = "expanded", lambda: self.plain(plain, quantized_expand.expand(words.words, self.x.dtype))
        chosen = quantized_experts.pays_to_expand(words, choices, shape.count)
        return [expanded, *ways] if chosen else [*ways, expanded]

    def _tiles(self, product: Callable, weight: Operand, tiles: Sequence, shape: Shape) -> list[tuple[str, Launch]]:
        fitting = [t for t in dict.fromkeys(tiles) if t is tiles[0] or fits(t.tokens, len(self.out), shape.count)]
        return [(str(tuple(t)), partial(product, t, weight)) for t in fitting]


def fits(height: int, choices: int, count: int) -> bool:
    """Whether a tile of so many tokens is neither far too low nor far too high."""
    return height * count // 32 <= choices <= height * count * 4 or (height == 16 and choices <= 16 * count)


def cases(shape: Shape, gate_up: Operand, down: Operand, tokens: int) -> Iterator[tuple[str, Case]]:
    x = torch.randn(tokens, shape.hidden, device="cuda").bfloat16()
    ids = torch.rand(tokens, shape.count, device="cuda").topk(shape.top).indices
    weights = torch.full(ids.shape, 1 / shape.top, device="cuda")
    counts, lists = routing.assign(ids, shape.count)
    choices = tokens * shape.top
    inner = torch.randn(choices, shape.size, device="cuda").bfloat16()
    yield "gate_up", Case(x, gate_up, None, torch.empty_like(inner), counts, lists, shape.top)
    out = torch.empty(choices, shape.hidden, device="cuda", dtype=x.dtype)
    yield "down", Case(inner, down, weights, out, counts, lists, 1)


def random_operand(form: str, rows: int, columns: int) -> Operand:
    if form == "bf16":
        return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * columns**-0.5
    return quantized_experts.pack(random_weight(form, rows, columns, "cuda"), torch.bfloat16)


def compare(case: Case, shape: Shape, search: bool) -> dict[str, float]:
    """Microseconds of each way whose result is the first one's."""
    found: dict[str, float] = {}
    expected: Tensor | None = None
    for name, launch in case.launches(shape)[: None if search else 1]:
        found[name] = graph_us(launch, repeats=9)
        expected = case.out.float().clone() if expected is None else expected
        error = float((case.out.float() - expected).norm() / expected.norm())
        if not error < 1e-2:
            raise AssertionError(f"{name}: {error}")
    return found


def compile_all(forms: list[str], shapes: list[Shape], search: bool) -> None:
    """Side by side, before anything is timed."""
    with OPS.compile_only(torch.device("cuda")):
        for shape, form, tokens in itertools.product(shapes, forms, TOKENS):
            weights = matrices(form, shape)
            for _, case in cases(shape, *weights, tokens):
                for _, launch in case.launches(shape)[: None if search else 1]:
                    launch()


def matrices(form: str, shape: Shape) -> tuple[Operand, Operand]:
    """Of gate and up, and of down, of all experts."""
    gate_up = random_operand(form, shape.count * 2 * shape.size, shape.hidden)
    return gate_up, random_operand(form, shape.count * shape.hidden, shape.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--forms", nargs="+", default=["bf16", "int4-g128", "int8"])
    parser.add_argument("--no-search", action="store_true", help="only what is chosen")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    compile_all(args.forms, [SHAPES[name] for name in args.models], not args.no_search)
    results = {}
    for name, form in itertools.product(args.models, args.forms):
        shape = SHAPES[name]
        weights = matrices(form, shape)
        for tokens in TOKENS:
            for part, case in cases(shape, *weights, tokens):
                found, floor = compare(case, shape, not args.no_search), case.floor(shape)
                results[f"{name} {form} {part} {tokens}"] = {"floor": floor, **found}
                chosen, *others = (f"{way} {us:.0f}" for way, us in found.items())
                print(f"{name} {form} {part} {tokens} tokens: floor {floor:.0f}, chosen {chosen};", *sorted(others))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
