"""Sampling on a GPU: checked, then timed in a CUDA graph.

    python benchmarks/kernels/sampling.py [--vocab-size 151936] [--bandwidth 3.09]

Each launch of a graph reads other logits, so that they come from memory. The floor is one reading of the logits at
``--bandwidth`` TB/s. Beside it: argmax and a sort of the same logits in torch, as what else could be done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from graph_timing import each_us
from torch import Tensor

from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.sampling import PARAM_WORDS, PARAMS
from octavo.kernels.triton import sampling

ROWS = (1, 64, 256)
L2_BYTES = 128 << 20  # more than an L2 cache
KINDS: dict[str, list[tuple[float, int, float, float]]] = {  # temperature, top_k, top_p, min_p, in turns
    "greedy": [(0, 0, 1, 0)],
    "temperature": [(0.6, 0, 1, 0)],
    "top-k": [(1.0, 50, 1, 0)],
    "top-p": [(1.0, 0, 0.9, 0)],
    "mixture": [(0, 0, 1, 0), (0.6, 0, 1, 0), (0.7, 20, 0.8, 0), (1.0, 0, 0.95, 0.01)],
}


def params_of(rules: Sequence[tuple[float, int, float, float]], rows: int) -> Tensor:
    table = np.zeros(rows, PARAMS)
    for i in range(rows):
        table[i] = (*rules[i % len(rules)], 1000 + i, 5)
    return torch.from_numpy(table.view(np.int32).reshape(rows, PARAM_WORDS)).cuda()


def logits_of(shape: str, rows: int, vocab_size: int) -> Tensor:
    """ "peaked": a few tokens have nearly all of the weight, as in a trained model. "flat": as with random weights."""
    noise = torch.randn(rows, vocab_size, device="cuda") * (0.5 if shape == "flat" else 2.5)
    if shape == "peaked":
        likely = torch.randint(vocab_size, (rows, 50), device="cuda")
        noise.scatter_add_(1, likely, torch.rand(rows, 50, device="cuda") * 16)
    return noise.bfloat16()


def check(vocab_size: int) -> None:
    """Greedy tokens equal the reference's; tokens drawn are likely ones; a row alone gives the same token."""
    logits = logits_of("peaked", 16, vocab_size)
    params = params_of(KINDS["mixture"], 16)
    tokens = sampling.sample(logits, params).token_ids
    reference = ReferenceOps().sample(logits, params).token_ids
    assert torch.equal(tokens[::4], reference[::4])
    assert (torch.softmax(logits.float(), 1).gather(1, tokens[:, None])[2::4] > 1e-4).all()
    assert tokens.tolist() == [int(sampling.sample(logits[i : i + 1], params[i : i + 1]).token_ids) for i in range(16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--bandwidth", type=float, default=3.09, help="TB/s that the device reads")
    options = parser.parse_args()
    check(options.vocab_size)
    print(f"us for one step, bf16 logits, V = {options.vocab_size}")
    print(
        f"{'rows':>5} {'logits':8} {'floor':>7} "
        + "".join(f"{kind:>13}" for kind in KINDS)
        + f"{'argmax':>9} {'sort':>9}"
    )
    for rows in ROWS:
        size = rows * options.vocab_size * 2
        copies = min(64, max(2, -(-L2_BYTES // size)))
        for shape in ("peaked", "flat"):
            several = [logits_of(shape, rows, options.vocab_size) for _ in range(copies)]
            line = f"{rows:5} {shape:8} {size / options.bandwidth / 1e6:7.1f} "
            for kind, rules in KINDS.items():
                params, filters = params_of(rules, rows), kind not in ("greedy", "temperature")
                calls = [partial(sampling.sample, x, params, filters=filters) for x in several]
                line += f"{each_us(calls):13.1f}"
            line += f"{each_us([lambda x=x: x.argmax(1) for x in several]):9.1f}"
            print(line + f" {each_us([lambda x=x: x.sort(1, descending=True) for x in several[:2]]):9.1f}", flush=True)


if __name__ == "__main__":
    main()
