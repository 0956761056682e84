"""Products on a CPU, in turns with bfloat16 by oneDNN.

    python benchmarks/kernels/cpu_products.py [--rows 1 8 32] [--forms bf16 int8 Q4_1] [--shapes 960x576] [--json OUT]

Every product is compared with the reference first. Weights are copied until all copies together are larger than any
cache, and used in turn, so that a product reads its weight from memory, as a model's step does; like there, ours are a
list of tasks that one call runs. Rounds go through all forms; the figures are medians of the rounds: microseconds, GB/s
of the packed weight, GOP/s, and oneDNN's time relative to it. The default shapes are SmolLM2-135M's: qkv, o, gate-up,
down, head.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from octavo.bench.environment import describe_machine
from octavo.ggml.block_types import BLOCK_TYPES
from octavo.kernels.cpu.arena import Arena
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.cpu.panels import BLOCK_FORMS, Panels
from octavo.kernels.cpu.tasks import Step
from octavo.kernels.packed import BlockWeight, Operand
from octavo.kernels.reference import quantized as reference
from octavo.quantization.pack import quantize

SHAPES = ("960x576", "576x576", "3072x576", "576x1536", "49152x576")
FORMS = ("bf16", "int8", "w8a8", "int4", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")
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


def check(ops: CpuOps, packed: Operand, weight: Operand, k: int) -> None:
    x = torch.randn(3, k).bfloat16()
    found, expected = ops.linear(x, packed).float(), x.float() @ reference.dequantize(weight, torch.float32).T
    assert (found - expected).norm() <= 0.02 * expected.norm(), "the product is wrong"


def recorded(ops: CpuOps, form: str, shape: tuple[int, int], rows: int) -> tuple[Callable[[], None], int, int]:
    """To multiply with all copies of a weight; how many they are, and a copy's bytes."""
    weight = make(form, *shape)
    packed = ops.pack_linear(weight)
    assert isinstance(packed, Panels)
    assert ops._tasks is not None
    check(ops, packed, weight, shape[1])
    copies = max(2, CACHE // packed.nbytes)
    arena = Arena()  # as the model's own
    data = [arena.take(packed.nbytes).copy_(packed.data) for _ in range(copies)]
    weights = [replace(packed, data=each) for each in data]
    x = torch.randn(rows, shape[1]).bfloat16()
    held: list[tuple[int, ctypes.Structure, tuple[Tensor | None, ...]]] = []
    ops._tasks.listener = lambda task, call, tensors: held.append((task, call, tensors))
    for each in weights:
        ops.linear(x, each)
    ops._tasks.listener = None
    listed = (Step * copies)(*(Step(task, ctypes.addressof(call)) for task, call, _tensors in held))
    return partial(run_all, ops, listed, (weights, x, held)), copies, packed.nbytes


def run_all(ops: CpuOps, steps: Any, _held: Any) -> None:
    assert ops._tasks is not None
    ops._tasks.run_all(steps)


def onednn(shape: tuple[int, int], rows: int) -> tuple[Callable[[], None], int, int]:
    """The same with weights that oneDNN has laid out for itself."""
    weight, x = make("bf16", *shape), torch.randn(rows, shape[1]).bfloat16()
    assert isinstance(weight, Tensor)
    copies = max(2, CACHE // weight.nbytes)
    weights = [torch.ops.mkldnn._reorder_linear_weight(weight, 32) for _ in range(copies)]

    def run() -> None:
        for each in weights:
            torch.ops.mkldnn._linear_pointwise(x, each, None, "none", [], "")

    return run, copies, weight.nbytes


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(ops: CpuOps, shape: str, forms: list[str], rows: int) -> list[dict[str, object]]:
    n, k = map(int, shape.split("x"))
    fitting = [form for form in forms if form not in BLOCK_FORMS or k % BLOCK_TYPES[form].block_size == 0]
    runs = {"onednn": onednn((n, k), rows), **{form: recorded(ops, form, (n, k), rows) for form in fitting}}
    times: dict[str, list[float]] = {form: [] for form in runs}
    for _ in range(ROUNDS):
        for form, (run, copies, _nbytes) in runs.items():
            times[form].append(seconds(run) / copies)
    plain = median(times["onednn"])
    return [result(shape, rows, form, median(times[form]), runs[form][2], plain) for form in runs]


def result(shape: str, rows: int, form: str, took: float, nbytes: int, plain: float) -> dict[str, object]:
    n, k = map(int, shape.split("x"))
    own = {
        "us": round(took * 1e6, 1),
        "GB/s": round(nbytes / took / 1e9, 1),
        "GOP/s": round(2e-9 * n * k * rows / took),
        "x": round(plain / took, 2),
    }
    print(f"{shape:>10} rows {rows:4} {form:7}", *(f"{value:9} {name}" for name, value in own.items()), flush=True)
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
        results = [
            each for shape in args.shapes for rows in args.rows for each in measure(ops, shape, args.forms, rows)
        ]
    if args.json:
        runs = json.loads(args.json.read_text())["runs"] if args.json.exists() else []
        run = {**describe_machine(), "threads": torch.get_num_threads(), "results": results}
        args.json.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
