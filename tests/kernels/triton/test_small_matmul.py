"""Products of a small batch against float64, cut in every way that the settings allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton import norm, small_matmul, small_matmul_settings
from octavo.kernels.triton.capability import MULTIPROCESSORS
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST
from octavo.kernels.triton.small_matmul import SmallProducts
from octavo.kernels.triton.small_matmul_settings import (
    DESCRIPTORS,
    RING,
    SHARED_BYTES,
    TABLE,
    Settings,
    by_rule,
    choose,
)

TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
"""Of the norm of the difference over the norm of the result."""

SMALL = [
    # tokens, outputs, inputs, settings
    (3, 70, 48, Settings(16, 64, 16)),  # two tiles of rows, the last one in part
    (17, 40, 80, Settings(16, 32, 32, splits=2)),  # two tiles of tokens; fewer than 64 rows; columns in part
    (16, 64, 96, Settings(16, 64, 32, splits=3, trigger=FIRST)),  # nothing in part
    (5, 130, 64, Settings(16, 64, 32, splits=4, trigger=AFTER_WAIT)),  # the last two splits have no columns
]
LARGE = [
    *((tokens, 1024, 3072, None) for tokens in (2, 16, 17, 33, 64, 65, 128, 200, 256)),
    (64, 4096, 1024, Settings(64, 32, 128, stages=5)),
    (64, 4096, 1024, Settings(64, 64, 128, splits=4, loads=DESCRIPTORS)),
    (100, 1001, 1008, Settings(128, 64, 128, splits=3, stages=3, loads=DESCRIPTORS)),
    (100, 1001, 1008, Settings(64, 128, 64, splits=2, warps=8)),
    (64, 4096, 1024, Settings(64, 64, 128, splits=2, loads=RING)),
    (100, 1001, 1008, Settings(128, 64, 128, splits=3, stages=3, loads=RING, trigger=FIRST)),
    (2, 3000, 8192, Settings(16, 64, 64, splits=4, stages=8, loads=RING)),
    (200, 2048, 2048, Settings(256, 64, 64, stages=4, warps=8, loads=RING, trigger=AFTER_WAIT)),
    (129, 1024, 3072, Settings(64, 128, 64, splits=7, stages=3, warps=8, loads=RING)),
    (256, 4099, 2064, Settings(256, 64, 64, splits=2, trigger=FIRST)),
    (7, 30_011, 896, Settings(16, 128, 128, stages=3)),
]
CASES = SMALL + [pytest.param(*case, marks=pytest.mark.gpu) for case in LARGE]
PRODUCTS = pytest.mark.parametrize(("tokens", "n", "k", "settings"), CASES)


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype, scale: float = 1) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(device, dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """NaN is never close."""
    assert actual.dtype is dtype
    assert actual.shape == expected.shape
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def operands(tokens: int, n: int, k: int, bias: bool, device: str, dtype: torch.dtype) -> tuple:
    if n > 256 and dtype is torch.float32:
        pytest.skip("tiles are chosen for 16 bits")
    x = randn(tokens, k, seed=0, device=device, dtype=dtype)
    weight = randn(n, k, seed=1, device=device, dtype=dtype, scale=k**-0.5)
    b = randn(n, seed=2, device=device, dtype=dtype) if bias else None
    return x, weight, b, x.double() @ weight.double().T + (0 if b is None else b.double())


@PRODUCTS
@pytest.mark.parametrize("bias", [False, True])
def test_linear(device, dtype, tokens, n, k, settings, bias):
    x, weight, b, expected = operands(tokens, n, k, bias, device, dtype)
    products = SmallProducts(x.device)
    for _ in range(2):  # the counters are 0 again after a launch
        close(products.linear(x, weight, b, settings), expected, dtype)


@PRODUCTS
@pytest.mark.parametrize("bias", [False, True])
def test_gate_up(device, dtype, tokens, n, k, settings, bias):
    x, weight, b, expected = operands(tokens, 2 * n, k, bias, device, dtype)
    gate, up = expected.chunk(2, dim=1)
    products = SmallProducts(x.device)
    for _ in range(2):
        close(products.gate_up(x, weight, b, settings), F.silu(gate) * up, dtype)


@pytest.mark.parametrize("trigger", [FIRST, AFTER_WAIT, AFTER_SUMS])
def test_the_order_of_arrival_does_not_show(device, dtype, trigger):
    small = device == "cpu"
    tokens, n, k = (16, 64, 96) if small else (64, 1024, 3072)
    chosen = Settings(16, 64, 32, splits=3) if small else Settings(64, 64, 64, splits=6, trigger=trigger)
    x, weight, b, _ = operands(tokens, n, k, True, device, dtype)
    products = SmallProducts(x.device)
    first = products.linear(x, weight, b, chosen)
    for _ in range(2 if small else 50):
        assert torch.equal(products.linear(x, weight, b, chosen), first)


SHAPES = [(4096, 1024), (1024, 2048), (3072, 2048), (8192, 2048), (4096, 14336), (151_936, 1024), (72, 48)]


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("tokens", [2, 16, 17, 64, 100, 256])
@pytest.mark.parametrize("gated", [False, True])
def test_the_rule_fills_the_multiprocessors_and_no_more(n, k, tokens, gated):
    s = by_rule(n, k, tokens, gated=gated)
    tiles = triton.cdiv(tokens, s.tokens) * triton.cdiv(n, s.rows)
    assert s.tokens >= tokens  # weights are read once
    assert s.splits == 1 or tiles * s.splits <= MULTIPROCESSORS
    assert s.stages * 2 * s.depth * (s.rows * (1 + gated) + s.tokens) <= SHARED_BYTES
    steps = triton.cdiv(k, s.depth)
    assert (s.splits - 1) * triton.cdiv(steps, s.splits) < steps  # the last split has columns, too


def test_the_table_is_read_by_the_next_larger_number_of_tokens(monkeypatch):
    entry = {64: Settings(64, 64, splits=3), 16: Settings(16, 128), 128: None, 256: Settings(256, 64)}
    monkeypatch.setitem(TABLE, (48, 32, False), entry)
    found = {t: choose(48, 32, t, gated=False) for t in (1, 2, 16, 17, 64, 65, 128, 129, 256, 257)}
    assert found[2] == found[16] == entry[16]
    assert found[17] == Settings(32, 64, splits=3)
    assert found[64] == entry[64]
    assert found[129] == found[256] == entry[256]
    assert [t for t, s in found.items() if s is None] == [1, 65, 128, 257]
    assert choose(48, 32, 16, gated=True) is None


def test_what_does_not_fit(device, monkeypatch):
    monkeypatch.setattr(small_matmul_settings, "RULE_TOKENS", 256)
    monkeypatch.setattr(small_matmul, "is_supported", lambda device: True)
    x, weight = (
        torch.zeros(8, 64, dtype=torch.float16, device=device),
        torch.zeros(40, 64, dtype=torch.float16, device=device),
    )
    assert small_matmul.fits(x, weight)
    assert small_matmul.fits(x, weight, gated=True)
    refused = [
        (x[:1], weight),  # one row is `matvec`'s
        (x.repeat(40, 1), weight),
        (x.float(), weight.float()),
        (x, weight.bfloat16()),
        (x[:, :40], weight[:, :40]),  # rows apart
        (x[:, :40].contiguous(), weight[:, :40].contiguous()),  # 40 columns are no multiple of 16
        (x, "opaque"),
    ]
    assert not any(small_matmul.fits(*pair) for pair in refused)


def test_through_the_seam(device, monkeypatch):
    """Where the table has settings, the operations take these kernels, and give the reference's result."""
    n, k, dtype = 48, 32, torch.float16
    for shape in ((n, k, False), (2 * n, k, False), (n, k, True)):
        monkeypatch.setitem(TABLE, shape, {16: Settings(16, 64, 16, splits=2)})
    monkeypatch.setattr(small_matmul, "is_supported", lambda device: True)
    ours, launches = TritonOps(), []
    ours._products = SmallProducts(torch.device(device))  # as the first plan does
    launch = ours._products._launch
    monkeypatch.setattr(ours._products, "_launch", lambda *args: (launches.append(args), launch(*args))[1])
    weight, bias = (randn(*s, seed=3, device=device, dtype=dtype, scale=0.2) for s in ((2 * n, k), (2 * n,)))
    norm_weight = randn(k, seed=2, device=device, dtype=dtype)
    for name in ("add_norm_linear", "add_norm_gate_up"):
        results = []
        for ops in (ours, ReferenceOps()):
            x = randn(7, k, seed=0, device=device, dtype=dtype)
            residual = randn(7, k, seed=1, device=device, dtype=torch.float32)
            results.append(getattr(ops, name)(x, residual, norm_weight, 1e-5, weight, bias))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=3e-3, atol=1e-2)
    assert len(launches) == 2


RING_CHAIN = {n: Settings(64, 64, 64, splits, 3, 4, RING) for n, splits in ((2048, 3), (1024, 4))}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("trigger", [FIRST, AFTER_WAIT, AFTER_SUMS])
def test_a_chain_of_kernels_in_a_graph(device, interpreted, trigger, early):
    """Kernels that begin before the one before has ended: every replay gives what they give one by one."""
    if interpreted or not small_matmul.is_supported(torch.device(device)):
        pytest.skip("needs a Hopper GPU")
    tokens, h, n = 50, 1024, 2048
    up, down = (randn(*s, seed=1, device=device, dtype=torch.bfloat16, scale=0.03) for s in ((2 * n, h), (h, n)))
    gain = randn(h, seed=2, device=device, dtype=torch.bfloat16)
    products = SmallProducts(torch.device(device, torch.cuda.current_device()))
    chosen = {size: replace(s, trigger=trigger) for size, s in RING_CHAIN.items()}

    def layers(wait: bool) -> Tensor:
        x = randn(tokens, h, seed=0, device="cpu", dtype=torch.bfloat16).to(device) if wait else start.clone()
        residual = torch.zeros(tokens, h, device=device)
        for _ in range(6):
            x, residual = norm.add_rms_norm(x, residual, gain, 1e-5, pdl=not wait, early=early and not wait)
            x = products.gate_up(x, up, None, chosen[n])
            if wait:
                torch.cuda.synchronize()
            x = products.linear(x, down, None, chosen[h])
            if wait:
                torch.cuda.synchronize()
        return x

    expected = layers(True)
    start = randn(tokens, h, seed=0, device=device, dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = layers(False)
    for _ in range(100):
        result.fill_(float("nan"))
        graph.replay()
        assert torch.equal(result, expected)
