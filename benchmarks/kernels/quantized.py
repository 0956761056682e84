"""Products with quantized weights on a GPU: one row, a few, and batches, beside plain bfloat16 ones.

    python benchmarks/kernels/quantized.py [--model 8B] [--parts one few eights] [--no-search] [--json FILE]

1. A layer's four products and the head for one row, in a chain with programmatic dependent launch, in a CUDA graph,
   with weights rotated so that they come from memory; floors are the packed bytes over 3.09 TB/s. Then other settings
   for each product inside the chain, as differences.
2. The same four products for 2 to 64 rows, weight only: in words, and expanded for cuBLAS.
3. For 64, 256 and 8192 rows: products of 8 bits (with the rounding of x) beside bfloat16's, other tiles, and
   torch's own (`_int_mm` without its epilogue, `_scaled_mm` by rows).

Every product is compared with float32 torch before it is timed. What fails is printed and left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from graph_timing import graph_us
from products import BYTES_PER_US, EPS, MODELS, ROTATED_BYTES, Product

from helpers_small_weights import random_weight
from octavo.kernels.packed import Fp8Weight, Int8Weight, PackedWeight
from octavo.kernels.reference.quantized import dequantize
from octavo.kernels.triton import matvec, quantized_eights, quantized_expand, quantized_matmul, quantized_matvec
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.quantized_eights import Tile
from octavo.kernels.triton.quantized_matmul import Tile as WordsTile
from octavo.kernels.triton.quantized_matvec import Settings
from octavo.kernels.triton.quantized_rows import quantize_rows
from octavo.kernels.triton.quantized_words import WordWeight

OPS = TritonOps()
RESULTS: dict[str, float | str] = {}
COMPILING: list[bool] = []
"""Not empty in the first pass, in which kernels are compiled side by side and nothing is computed."""


def report(key: str, value: float | str) -> None:
    if COMPILING:
        return
    RESULTS[key] = value
    print(f"  {key:58} {value:10.2f}" if isinstance(value, float) else f"  {key:58} {value}", flush=True)


def time_us(run: Callable[[], object], calls: int) -> float:
    """`graph_us`; 0 while kernels are compiled."""
    if COMPILING:
        run()
        return 0.0
    return graph_us(run, calls)


def tried(key: str, measure: Callable[[], float]) -> float | None:
    """The measured time, or None and what went wrong."""
    try:
        value = measure()
    except Exception as error:  # a setting that does not compile must not end the run
        report(key, f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}")
        return None
    report(key, value)
    return value


def copies_of(nbytes: int) -> int:
    return max(2, min(-(-ROTATED_BYTES // nbytes), 40))


def random_operand(form: str, p: Product) -> Tensor | PackedWeight:
    if form == "bf16":
        return torch.randn(p.rows, p.k, device="cuda", dtype=torch.bfloat16) * p.k**-0.5
    return OPS.pack_linear(random_weight(form, p.rows, p.k, "cuda"))


def again(operand: Tensor | PackedWeight) -> Tensor | PackedWeight:
    """The same numbers in other memory."""
    if isinstance(operand, Tensor):
        return operand.clone()
    return replace(operand, **{name: tensor.clone() for name, tensor in operand.tensors().items()})


class Part:
    """What one product reads, with copies of its weights."""

    def __init__(self, form: str, p: Product, copies: int) -> None:
        self.product = p
        first = random_operand(form, p)
        self.weights = [first, *(again(first) for _ in range(copies - 1))]
        self.x = torch.randn(1, p.k, device="cuda").bfloat16()
        self.norm = torch.randn(p.k, device="cuda").bfloat16()

    @property
    def floor(self) -> float:
        return self.weights[0].nbytes / BYTES_PER_US

    def run(self, x: Tensor, residual: Tensor, weight: Tensor | PackedWeight, settings: object = None) -> tuple:
        kernels = quantized_matvec if isinstance(weight, WordWeight) else matvec
        if not self.product.norm:
            return kernels.linear(x, weight, settings=settings), residual
        operation = kernels.add_norm_gate_up if self.product.gated else kernels.add_norm_linear
        return operation(x, residual, self.norm, EPS, weight, settings=settings)

    def check(self, form: str) -> float:
        """Relative error of the product alone."""
        weight = self.weights[0]
        found = (quantized_matvec if isinstance(weight, WordWeight) else matvec).linear(self.x, weight)
        wide = weight.float() if isinstance(weight, Tensor) else quantized_expand.expand(weight, torch.float32)
        exact = self.x.float() @ wide.T
        return ((found.float() - exact).norm() / exact.norm()).item()


def chain_us(parts: list[Part], settings: dict[str, Settings]) -> float:
    count, h = len(parts[0].weights), parts[0].product.k

    def run() -> None:
        y, residual = torch.randn(1, h, device="cuda").bfloat16(), torch.zeros(1, h, device="cuda")
        for layer in range(count):
            for part in parts:
                k = part.product.k
                x = y if y.shape[1] == k else part.x
                y, residual = part.run(x, residual, part.weights[layer], settings.get(part.product.name))

    return time_us(run, count)


def others(p: Product, unit: int) -> list[Settings]:
    """Settings around the rule's."""
    chosen = quantized_matvec.choose(p.n, p.k // unit, gated=p.gated, bits=128 // unit)
    found = [replace(chosen, rows=r) for r in (chosen.rows // 2, chosen.rows * 2) if r]
    tile = chosen.tile // 2
    found += [Settings(max(1, r // (1 + p.gated)), tile, max(4, tile // 32)) for r in (4, 8)]
    return found


def one_row(name: str, forms: list[str], search: bool) -> None:
    print(f"\n{name}, one row, us")
    base = None
    for form in ["bf16", *forms]:
        products = MODELS[name]
        bits = 16 if form == "bf16" else 4 if form.startswith(("int4", "Q4")) else 8
        copies = copies_of(sum(p.rows * p.k for p in products[:4]) * bits // 8)
        parts = [Part(form, p, copies) for p in products[:4]]
        worst = max(part.check(form) for part in parts)
        assert COMPILING or worst < 1e-2, f"{form}: relative error {worst}"
        floor = sum(part.floor for part in parts)
        layer = tried(f"{form} layer (floor {floor:.1f}, error {worst:.0e})", lambda parts=parts: chain_us(parts, {}))
        head = Part(form, products[4], 2)
        alone = tried(f"{form} head (floor {head.floor:.1f})", lambda head=head: head_us(head))
        if form == "bf16":
            base = (layer, alone)
        elif base and layer and alone and base[0] and base[1]:
            report(f"{form} of bf16's time, layer; head", f"{layer / base[0]:.2f}; {alone / base[1]:.2f}")
        if search and layer is not None and form in ("int4-g128", "int8"):
            search_one_row(form, products, parts, layer)
        del parts, head


def search_one_row(form: str, products: list[Product], parts: list[Part], layer: float) -> None:
    for p in products[:4]:
        for s in others(p, 32 if form.startswith("int4") else 16):
            tried(f"    {form} {p.name} {s}", lambda p=p, s=s: chain_us(parts, {p.name: s}) - layer)


def head_us(head: Part) -> float:
    weights = head.weights * 5
    return time_us(lambda: [head.run(head.x, head.x, w) for w in weights], len(weights))


def few_rows(name: str, forms: list[str], search: bool) -> None:
    print(f"\n{name}, few rows, us for the four products")
    for form in forms:
        weights = [random_operand(form, p) for p in MODELS[name][:4]]
        plain = [quantized_expand.expand(w, torch.bfloat16) for w in weights if isinstance(w, WordWeight)]
        for tokens in (2, 16, 64, 256):
            xs = [torch.randn(tokens, p.k, device="cuda").bfloat16() for p in MODELS[name][:4]]
            for x, w, dense in zip(xs, weights, plain, strict=True):
                error = (quantized_matmul.linear(x, w).float() - F.linear(x.float(), dense.float())).norm()
                assert COMPILING or error < 1e-2 * F.linear(x.float(), dense.float()).norm(), (form, tokens)
            tiles: list[WordsTile | None] = [None]
            if search and tokens in (16, 64):
                chosen = quantized_matmul.choose(tokens, 1 << 14)
                tiles += [chosen._replace(outputs=o, units=u) for o in (32, 64) for u in (4, 8)]
            for tile in tiles:
                multiply = functools.partial(quantized_matmul.linear, tile=tile)
                four(f"{form} {tokens} rows {tuple(tile) if tile else 'chosen'}", multiply, xs, weights)
            four(f"{form} {tokens} rows, expanded", expanded, xs, weights)
            four(f"bf16 {tokens} rows, cuBLAS", F.linear, xs, plain)


def expanded(x: Tensor, weight: WordWeight) -> Tensor:
    return F.linear(x, quantized_expand.expand(weight, x.dtype))


def four(key: str, multiply: Callable[..., Tensor], xs: list[Tensor], weights: list) -> None:
    """Time of four products in a row, five times over in a graph."""
    pairs = [*zip(xs, weights, strict=True)] * 5
    tried(key, lambda: time_us(lambda: [multiply(x, w) for x, w in pairs], 5))


CANDIDATES = [
    Tile(64, 128, 128, 4, 5),
    Tile(128, 64, 128, 4, 5),
    Tile(128, 128, 128, 8, 4),
    Tile(256, 64, 128, 8, 4),
    Tile(256, 128, 128, 8, 3),
    Tile(128, 256, 128, 8, 4),
]


def eights(name: str, search: bool) -> None:
    print(f"\n{name}, 8 bits by 8 bits, us for each product")
    for tokens in (16, 64, 256, 8192):
        for p in MODELS[name][: 5 if tokens <= 256 else 4]:
            x = torch.randn(tokens, p.k, device="cuda").bfloat16()
            plain = random_operand("bf16", p)
            timed(f"bf16 {p.name} {tokens}, cuBLAS", functools.partial(F.linear, x), plain)
            for form in ("w8a8", "fp8-w8a8", "fp8-w8a8-block") if tokens > 16 else ("w8a8",):
                weight = random_weight(form, p.rows, p.k, "cuda")
                eight_bits(f"{form} {p.name} {tokens}", x, weight, search and p.name != "head")


def eight_bits(key: str, x: Tensor, weight: Int8Weight | Fp8Weight, search: bool) -> None:
    blocks = isinstance(weight, Fp8Weight) and weight.block == (128, 128)
    q, s, _ = quantize_rows(x, weight.values.dtype, grouped=blocks)
    part = slice(0, 64)
    columns = s.repeat_interleave(128, dim=1)[:, : x.shape[1]] if blocks else s
    exact = (q.float() * columns)[part] @ dequantize(weight, torch.float32).T
    found = quantized_eights.multiply(q, s, weight, x.dtype)[part]
    error = ((found.float() - exact).norm() / exact.norm()).item()
    assert COMPILING or error < 1e-2, (key, error)
    timed(f"{key}, rounding x", lambda w: quantize_rows(x, w.values.dtype, grouped=blocks), weight)
    chosen = quantized_eights.choose(len(x), weight)
    timed(f"{key}, chosen {tuple(chosen)}", lambda w: quantized_eights.multiply(q, s, w, x.dtype), weight)
    if search and len(x) == 256 and not blocks:
        for tile in CANDIDATES:
            if tile != chosen:
                multiply = functools.partial(quantized_eights.multiply, tile=tile)
                timed(f"    {key}, {tuple(tile)}", lambda w, m=multiply: m(q, s, w, x.dtype), weight)
    if isinstance(weight, Int8Weight) and len(x) > 16:
        timed(f"    {key}, _int_mm", lambda w: torch._int_mm(q, w.values.t()), weight)
    if isinstance(weight, Fp8Weight) and not blocks:
        for fast in (False, True):
            library = functools.partial(torch._scaled_mm, out_dtype=torch.bfloat16, use_fast_accum=fast)
            timed(
                f"    {key}, _scaled_mm fast={fast}", lambda w, m=library: m(q, w.values.t(), s, w.scales.t()), weight
            )


def timed(key: str, run: Callable[..., object], weight: Tensor | PackedWeight) -> None:
    """Time of one of as many calls in a row, in a graph, as there must be copies of the weight."""
    weights = [weight, *(again(weight) for _ in range(copies_of(weight.nbytes) - 1))]
    tried(key, lambda: time_us(lambda: [run(w) for w in weights], len(weights)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="8B")
    parser.add_argument("--parts", nargs="+", choices=("one", "few", "eights"), default=("one", "few", "eights"))
    parser.add_argument("--no-search", action="store_true", help="only the chosen settings")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    COMPILING.append(True)
    with OPS.compile_only(torch.device("cuda")):
        run_parts(args.model, args.parts, not args.no_search)
    COMPILING.clear()
    run_parts(args.model, args.parts, not args.no_search)
    if args.json:
        args.json.write_text(json.dumps(RESULTS, indent=1))


def run_parts(name: str, parts: Sequence[str], search: bool) -> None:
    if "one" in parts:
        one_row(name, ["int8", "int8-g32", "fp8", "fp8-block", "int4-g128", "int4-g32", "Q4_K", "Q6_K"], search)
    if "few" in parts:
        few_rows(name, ["int4-g128", "int8"], search)
    if "eights" in parts:
        eights(name, search)


if __name__ == "__main__":
    main()
