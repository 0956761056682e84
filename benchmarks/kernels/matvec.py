"""Products of one row (or up to 16) on a GPU: each alone, then a layer's four in a chain, where settings are tried.

    python benchmarks/kernels/matvec.py [--models 0.6B 1B 8B] [--tokens 1] [--no-search]

Every product is first compared with float32 torch. Then it is timed in a CUDA graph, with weights rotated so that they
come from memory: cuBLAS (product only), these kernels one after the other, and with programmatic dependent launch.
The floor is the weights' bytes over 3.09 TB/s, what an H100 80GB reads at best.

The chain is a model's qkv (with norm) -> o -> gate and up (with norm and SiLU) -> down, several layers of it; attention
is left out. Settings are searched there, one product at a time, because alone others win.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from graph_timing import graph_us
from products import EPS, MODELS, ROTATED_BYTES, Product
from torch import Tensor

from octavo.kernels.triton import matvec
from octavo.kernels.triton.matvec_settings import Settings, choose
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT

OPS = TritonOps()


S = Settings
OTHERS: dict[tuple[str, str], list[Settings]] = {
    ("0.6B", "qkv"): [S(16, 256, 4), S(16, 256, 8), S(16, 1024, 4), S(8, 1024, 4)],
    ("0.6B", "o"): [S(4, 1024, 4), S(8, 256, 8), S(8, 512, 8)],
    ("0.6B", "gate/up"): [S(8, 256, 4), S(8, 256, 8), S(8, 1024, 4), S(4, 1024, 4)],
    ("0.6B", "down"): [S(4, 1024, 4), S(8, 256, 8), S(8, 1024, 8), S(8, 512, 8)],
    ("1B", "qkv"): [S(8, 1024, 4), S(16, 256, 8), S(8, 2048, 8), S(4, 1024, 4)],
    ("1B", "o"): [S(8, 256, 4), S(16, 256, 8), S(4, 1024, 4)],
    ("1B", "gate/up"): [S(4, 1024, 4), S(8, 256, 8), S(2, 1024, 4)],
    ("1B", "down"): [S(4, 1024, 4), S(2, 2048, 8), S(2, 1024, 4)],
    ("8B", "qkv"): [S(2, 2048, 8), S(8, 2048, 8), S(2, 1024, 4), S(4, 1024, 4)],
    ("8B", "o"): [S(2, 2048, 8), S(8, 2048, 8), S(2, 1024, 4)],
    ("8B", "gate/up"): [S(1, 1024, 4), S(2, 2048, 8), S(2, 1024, 4)],
    ("8B", "down"): [S(2, 2048, 8), S(1, 1024, 4), S(1, 2048, 8, AFTER_SUMS)],
    ("0.6B", "head"): [S(4, 1024, 4), S(16, 256, 8), S(8, 1024, 8)],
    ("1B", "head"): [S(8, 1024, 4), S(4, 2048, 8), S(2, 1024, 4)],
    ("8B", "head"): [S(2, 1024, 4), S(2, 2048, 8), S(8, 2048, 8)],
}
"""Settings that are tried beside the chosen ones."""


@dataclass
class Buffers:
    """What one product reads, and as many copies of its weights as are needed to read them from memory."""

    product: Product
    x: Tensor
    residual: Tensor | None
    norm_weight: Tensor | None
    weights: list[Tensor]

    @classmethod
    def random(cls, product: Product, tokens: int, copies: int) -> Buffers:
        x = torch.randn(tokens, product.k, device="cuda").bfloat16()
        residual = torch.randn(tokens, product.k, device="cuda") if product.norm else None
        norm_weight = torch.randn(product.k, device="cuda").bfloat16() if product.norm else None
        weights = [_random_weight(product) for _ in range(copies)]
        return cls(product, x, residual, norm_weight, weights)

    def run(self, x: Tensor, residual: Tensor | None, weight: Tensor, settings: Settings | None) -> tuple:
        """The product with what is fused into it, by these kernels: its result and the stream."""
        if self.norm_weight is None:
            return matvec.linear(x, weight, settings=settings), residual
        operation = matvec.add_norm_gate_up if self.product.gated else matvec.add_norm_linear
        return operation(x, residual, self.norm_weight, EPS, weight, settings=settings)


def _random_weight(product: Product) -> Tensor:
    return torch.randn(product.rows, product.k, device="cuda", dtype=torch.bfloat16) * product.k**-0.5


def copies_of(nbytes: int) -> int:
    return max(2, -(-ROTATED_BYTES // nbytes))


def with_pdl(on: bool) -> None:
    os.environ["OCTAVO_PDL"] = "1" if on else "0"


def error(buffers: Buffers, settings: Settings | None) -> float:
    """Relative error of the result against float32, of copies of what may be overwritten."""
    residual = None if buffers.residual is None else buffers.residual.clone()
    found, _ = buffers.run(buffers.x.clone(), residual, buffers.weights[0], settings)
    x = buffers.x.float()
    if buffers.norm_weight is not None and buffers.residual is not None:
        x = F.rms_norm(x + buffers.residual, x.shape[-1:], buffers.norm_weight.float(), EPS)
    exact = x @ buffers.weights[0].float().T
    if buffers.product.gated:
        gate, up = exact.chunk(2, dim=-1)
        exact = F.silu(gate) * up
    return ((found.float() - exact).norm() / exact.norm()).item()


def alone_us(buffers: Buffers, settings: Settings | None) -> float:
    rounds = max(1, 40 // len(buffers.weights))
    weights = buffers.weights * rounds

    def run() -> None:
        for weight in weights:
            buffers.run(buffers.x, buffers.residual, weight, settings)

    return graph_us(run, len(weights))


def cublas_us(buffers: Buffers) -> float:
    weights = buffers.weights * max(1, 40 // len(buffers.weights))
    return graph_us(lambda: [F.linear(buffers.x, weight) for weight in weights], len(weights))


def chain_us(layers: Sequence[Buffers], settings: dict[str, Settings], tokens: int) -> float:
    """Time of a layer's four products in a chain, with ``settings`` where given."""
    count, x = len(layers[0].weights), layers[0].x

    def run() -> None:
        y, residual = x, torch.zeros(tokens, x.shape[1], device="cuda")
        for layer in range(count):
            for part in layers:
                chosen = settings.get(part.product.name)
                y, residual = part.run(y[:, : part.product.k].contiguous(), residual, part.weights[layer], chosen)

    return graph_us(run, count)


def cublas_chain_us(layers: Sequence[Buffers]) -> float:
    count = len(layers[0].weights)
    return graph_us(lambda: [F.linear(p.x, p.weights[i]) for i in range(count) for p in layers], count)


def report_model(name: str, tokens: int, search: bool) -> None:
    products = MODELS[name]
    copies = copies_of(sum(2 * p.rows * p.k for p in products[:4]))
    parts = [Buffers.random(p, tokens, copies if p.name != "head" else 2) for p in products]
    print(f"\n{name}, {tokens} tokens   us: floor  cuBLAS  no PDL   PDL  share   error")
    for part in parts:
        report_alone(name, part, tokens, search)
    report_chain(name, parts[:4], tokens, search)


def report_alone(name: str, part: Buffers, tokens: int, search: bool) -> None:
    p = part.product
    with_pdl(False)
    plain = alone_us(part, None)
    with_pdl(True)
    early, err = alone_us(part, None), error(part, None)
    assert err < 6e-3, f"{p.name}: relative error {err}"
    print(
        f"  {p.name:8}          {p.floor:7.2f} {cublas_us(part):7.2f} {plain:7.2f} {early:7.2f}"
        f"  {p.floor / early:4.0%}  {err:.1e}   {choose(p.n, p.k, 2, gated=p.gated, tokens=tokens)}"
    )
    for settings in OTHERS[name, p.name] if search and p.name == "head" else ():
        assert error(part, settings) < 6e-3
        print(f"      {alone_us(part, settings):7.2f}  {settings}")


def report_chain(name: str, parts: Sequence[Buffers], tokens: int, search: bool) -> None:
    floor = sum(part.product.floor for part in parts)
    cublas = cublas_chain_us(parts)
    with_pdl(False)
    plain = chain_us(parts, {}, tokens)
    with_pdl(True)
    early = chain_us(parts, {}, tokens)
    print(f"  a layer  floor {floor:.2f}  cuBLAS, products only {cublas:.2f}  no PDL {plain:.2f}  PDL {early:.2f}")
    for part in parts if search else ():
        p = part.product
        chosen = choose(p.n, p.k, 2, gated=p.gated, tokens=tokens)
        later = [replace(chosen, trigger=t) for t in (AFTER_WAIT, AFTER_SUMS) if t != chosen.trigger]
        for settings in [*OTHERS[name, p.name], *later]:
            assert error(part, settings) < 6e-3
            time = chain_us(parts, {p.name: settings}, tokens)
            print(f"      {p.name:8} {time - early:+6.2f}  {settings}")
    print(f"  again {chain_us(parts, {}, tokens):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=1, choices=range(1, matvec.MAX_TOKENS + 1))
    parser.add_argument("--no-search", action="store_true", help="only the chosen settings")
    args = parser.parse_args()
    torch.manual_seed(0)
    for name in args.models:
        report_model(name, args.tokens, not args.no_search)


if __name__ == "__main__":
    main()
