"""Products with quantized weights on a CPU, in turns with bfloat16 by oneDNN.

    python benchmarks/kernels/cpu_products.py [--rows 1 8 32] [--forms int8 int4 Q4_1] [--shapes 960x576] [--json OUT]

Every product is compared with the reference first. Weights are copied until all copies together are larger than any
cache, and used in turn, so that a product reads its weight from memory, as a model's step does. Rounds go through all
forms; the figures are medians of the rounds: microseconds, GB/s of the packed weight, and arithmetic relative to
bfloat16's time. The default shapes are SmolLM2-135M's: qkv, o, gate-up, down, head.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from octavo.ggml.block_types import BLOCK_TYPES
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.cpu.panels import BLOCK_FORMS
from octavo.kernels.packed import BlockWeight, Operand, PackedWeight
from octavo.kernels.reference import quantized as reference
from octavo.quantization.pack import quantize

SHAPES = ("960x576", "576x576", "3072x576", "576x1536", "49152x576")
FORMS = ("int8", "w8a8", "int4", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
CACHE = 160 << 20
ROUNDS = 9


def random_blocks(kind: str, n: int, k: int) -> BlockWeight:
    """Random bytes: any are a weight; small float16 numbers by clearing the upper bits of their exponents."""
    block = BLOCK_TYPES[kind]
    data = torch.randint(0, 256, (n, k // block.block_size, block.type_size), dtype=torch.uint8)
    for at in (1, 3, block.type_size - 1):  # wherever a type has its float16 numbers
        data[..., at] &= 0x9F
    return BlockWeight(kind=kind, blocks=data.view(n, -1), block_size=block.block_size, type_size=block.type_size)


def make(form: str, n: int, k: int) -> Operand:
    if form == "bf16":
        return (torch.randn(n, k) * 0.02).bfloat16()
    return random_blocks(form, n, k) if form in BLOCK_FORMS else quantize(torch.randn(n, k) * 0.02, form)


def copies(packed: Operand) -> list[Operand]:
    """Enough of them to fill the caches."""
    count = max(2, CACHE // packed.nbytes)
    if not isinstance(packed, PackedWeight):
        return [packed, *(packed.clone() for _ in range(count - 1))]
    return [packed, *(replace(packed, data=packed.data.clone()) for _ in range(count - 1))]


def check(ops: CpuOps, packed: Operand, weight: Operand, k: int) -> None:
    x = torch.randn(3, k).bfloat16()
    found, expected = ops.linear(x, packed).float(), x.float() @ reference.dequantize(weight, torch.float32).T
    assert (found - expected).norm() <= 0.02 * expected.norm(), "the product is wrong"


def once(run: Callable[[Tensor, Operand], Tensor], x: Tensor, weights: list[Operand]) -> float:
    start = time.perf_counter()
    for weight in weights:
        run(x, weight)
    return (time.perf_counter() - start) / len(weights)


def measure(ops: CpuOps, shape: str, forms: list[str], rows: list[int]) -> list[dict[str, object]]:
    n, k = map(int, shape.split("x"))
    fitting = [form for form in forms if form not in BLOCK_FORMS or k % BLOCK_TYPES[form].block_size == 0]
    packed: dict[str, list[Operand]] = {}
    for form in ("bf16", *fitting):
        weight = make(form, n, k)
        packed[form] = copies(ops.pack_linear(weight))
        check(ops, packed[form][0], weight, k)
    results: list[dict[str, object]] = []
    for count in rows:
        x = torch.randn(count, k).bfloat16()
        times: dict[str, list[float]] = {form: [] for form in packed}
        for _ in range(ROUNDS):
            for form, weights in packed.items():
                times[form].append(once(ops.linear, x, weights))
        plain = median(times["bf16"])
        for form, found in times.items():
            results.append(result(shape, count, form, median(found), packed[form][0].nbytes, plain))
    return results


def result(shape: str, rows: int, form: str, seconds: float, nbytes: int, plain: float) -> dict[str, object]:
    own = {"us": round(seconds * 1e6, 1), "GB/s": round(nbytes / seconds / 1e9, 1), "x": round(plain / seconds, 2)}
    print(f"{shape:>10} rows {rows:4} {form:5} {own['us']:9} us {own['GB/s']:6} GB/s {own['x']:6} x bf16", flush=True)
    return {"shape": shape, "rows": rows, "form": form, **own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    ops = CpuOps()
    with torch.inference_mode():
        results = [each for shape in args.shapes for each in measure(ops, shape, args.forms, args.rows)]
    if args.json:
        args.json.write_text(json.dumps({"threads": torch.get_num_threads(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
