"""The kernels that only move bytes, on a GPU: norms, activation, embedding, rotation with the write into the cache.

    python benchmarks/kernels/elementwise.py [--tokens 1 256 8192] [--models 0.6B 8B]

Each kernel is first compared with the reference in float32, with fresh random numbers. Then its median time is
measured from memory (caches are flushed before each run) and in a CUDA graph of 20 launches (what it costs in a
decode step, inputs in the cache). The floor is the bytes it must move over 3.0 TB/s, what a copy on an H100 80GB
reaches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor

from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton import activations, embedding, norm, rotary

BYTES_PER_US = 3.0e6
EPS, BLOCK_SIZE, LAUNCHES = 1e-6, 16, 20
MODELS = {
    "0.6B": SimpleNamespace(h=1024, i=3072, hq=16, hk=8, d=128, qk_norm=True),
    "1B": SimpleNamespace(h=2048, i=8192, hq=32, hk=8, d=64, qk_norm=False),
    "8B": SimpleNamespace(h=4096, i=14336, hq=32, hk=8, d=128, qk_norm=False),
}


@dataclass
class Case:
    """``run`` computes what ``expected`` does, and moves ``moved`` bytes."""

    name: str
    run: Callable[[], Any]
    expected: Callable[[], Tensor]
    found: Callable[[], Tensor]
    moved: int


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def cases(m: SimpleNamespace, t: int) -> Iterator[Case]:
    reference = ReferenceOps()
    table, ids = randn(32768, m.h), torch.randint(32768, (t,), device="cuda")
    run = lambda: embedding.embedding(ids, table)  # noqa: E731
    yield Case("embedding", run, lambda: table[ids], run, 4 * t * m.h)

    x, weight = randn(t, m.h), randn(m.h)
    run = lambda: norm.rms_norm(x, weight, EPS)  # noqa: E731
    yield Case("rms_norm", run, lambda: reference.rms_norm(x.float(), weight.float(), EPS), run, 4 * t * m.h)

    stream = randn(t, m.h, dtype=torch.float32)
    yield Case(
        "add_rms_norm",
        lambda: norm.add_rms_norm(x, stream, weight, EPS),
        lambda: reference.add_rms_norm(x.float(), stream.clone(), weight, EPS)[0],
        lambda: norm.add_rms_norm(x.clone(), stream.clone(), weight, EPS)[0],
        12 * t * m.h,
    )

    gate_up = randn(t, 2 * m.i)
    run = lambda: activations.silu_mul(gate_up)  # noqa: E731
    yield Case("silu_mul", run, lambda: reference.silu_mul(gate_up.float()), run, 6 * t * m.i)
    yield rotation(m, t)


def rotation(m: SimpleNamespace, t: int) -> Case:
    reference = ReferenceOps()
    heads, blocks = m.hq + 2 * m.hk, t // BLOCK_SIZE + 2
    qkv, cos_sin = randn(t, heads * m.d), randn(max(t, 64), m.d, dtype=torch.float32)
    positions, slots = torch.arange(t, device="cuda"), torch.randperm(t, device="cuda")
    q_norm, k_norm = (randn(m.d), randn(m.d)) if m.qk_norm else (None, None)
    kv = KVLayer.zeros(blocks, BLOCK_SIZE, m.hk, m.d, torch.bfloat16, "cuda")

    def expected() -> Tensor:
        exact = KVLayer.zeros(blocks, BLOCK_SIZE, m.hk, m.d, torch.float32, "cuda")
        batch = ForwardBatch(
            token_ids=positions,
            positions=positions,
            slot_mapping=slots,
            query_lens=[t],
            context_lens=[t],
            block_tables=torch.zeros(1, blocks, dtype=torch.int64, device="cuda"),
            logit_indices=positions[:0],
            kv_cache=[exact],
            block_size=BLOCK_SIZE,
        )
        norms = (None, None) if q_norm is None or k_norm is None else (q_norm.float(), k_norm.float())
        plan = reference.plan_attention(batch)
        q = reference.rotate_and_store(qkv.float(), plan, cos_sin, norms[0], norms[1], EPS, exact)
        return torch.cat((q.flatten(), exact.keys.flatten(), exact.values.flatten()))

    def rotate(source: Tensor) -> Tensor:
        return rotary.rotate_and_store(source, positions, slots, cos_sin, q_norm, k_norm, EPS, kv)

    def found() -> Tensor:
        q = rotate(qkv.clone())
        return torch.cat((q.flatten(), kv.keys.flatten(), kv.values.flatten()))

    moved = 2 * t * m.d * (2 * m.hq + 5 * m.hk) + 4 * t * m.d
    return Case("rotate_and_store", lambda: rotate(qkv), expected, found, moved)


def error(case: Case) -> float:
    """Relative error against float32; nan unless every number was written."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory holds NaN
    found = case.found().double()
    torch.use_deterministic_algorithms(False)
    expected = case.expected().double()
    return float((found - expected).norm() / expected.norm())


def report(model: str, t: int, case: Case) -> None:
    wrong = error(case)
    if not wrong < 5e-3:
        raise SystemExit(f"{case.name}, {model}, {t} tokens: wrong by {wrong:.3g}")
    memory = triton.testing.do_bench(case.run, warmup=5, rep=30, return_mode="median") * 1e3
    graph = triton.testing.do_bench_cudagraph(lambda: [case.run() for _ in range(LAUNCHES)], rep=10) * 1e3 / LAUNCHES
    floor = case.moved / BYTES_PER_US
    line = f"{model:5} {t:6} {case.name:17} {wrong:8.1e} {floor:8.2f} {memory:8.2f} {floor / memory:6.0%} {graph:8.2f}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 256, 8192])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["0.6B", "8B"])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; us, bfloat16")
    print("model tokens kernel               error    floor   memory  share    graph")
    for model in args.models:
        for t in args.tokens:
            for case in cases(MODELS[model], t):
                report(model, t, case)


if __name__ == "__main__":
    main()
