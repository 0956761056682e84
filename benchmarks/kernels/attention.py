"""Attention on a GPU: checked against float32 torch, then timed with several settings.

    python benchmarks/kernels/attention.py [decode|fused|prefill] [--pdl]

Decoding is given as a share of the memory's bandwidth (`--bandwidth`, TB/s), prefill in TFLOP/s. Each launch of a chain
in one CUDA graph reads another copy of the cache, so that keys come from memory. The fused part gives, for few rows,
the time of rotation, cache write and attention behind a product as in a layer, less that of the product alone.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence

import torch
from graph_timing import each_us
from torch import Tensor

from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.triton import decode_fused, fresh_attention, matvec, prefill_attention, rotary
from octavo.kernels.triton.attention_plan import FreshRow, Scores, TritonPlan
from octavo.kernels.triton.decode_attention import DecodeAttention, DecodeSettings, settings
from octavo.kernels.triton.decode_fused import FusedDecode
from octavo.kernels.triton.pdl import use_pdl
from octavo.kernels.triton.prefill_attention import PrefillSettings

DEVICE = torch.device("cuda")
BLOCK = 16
L2_BYTES = 256 << 20  # several times an L2 cache
TOLERANCE = 2e-2

HEADS = [(16, 8, 128), (32, 8, 64), (32, 8, 128)]
TILES = [(64, 4, 2), (64, 4, 4), (128, 4, 2), (32, 4, 4), (16, 1, 6)]
SPLITS = [(1, 64), (4, 512), (8, 64), (16, 64), (33, 64), (33, 2048)]  # of a row at most, keys of each at least
PREFILL = [(128, 128, 8, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3)]


class Case:
    """Random rows of (queries, context), in several copies of a cache."""

    def __init__(self, lens: Sequence[tuple[int, int]], hq: int, hk: int, d: int, copies: int | None = None) -> None:
        self.lens, self.hq, self.hk, self.d = lens, hq, hk, d
        counts = [-(-context // BLOCK) for _, context in lens]
        self.bytes = sum(context for _, context in lens) * hk * d * 4
        shape = (sum(counts), hk, BLOCK, d)
        copies = copies or max(1, -(-L2_BYTES // self.bytes))
        self.caches = [KVLayer(*(torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for _ in "kv"))]
        self.caches += [KVLayer(*(x.clone() for x in self.caches[0].tensors)) for _ in range(copies - 1)]
        free = torch.randperm(sum(counts), device=DEVICE, dtype=torch.int32)
        tables = torch.zeros(len(lens), max(counts), device=DEVICE, dtype=torch.int32)
        for row, own in enumerate(free.split(counts)):
            tables[row, : len(own)] = own
        num_tokens = sum(queries for queries, _ in lens)
        self.qkv = torch.randn(num_tokens, (hq + 2 * hk) * d, device=DEVICE, dtype=torch.bfloat16)
        self.q = self.qkv[:, : hq * d].view(-1, hq, d)
        self.out = torch.empty(num_tokens, hq * d, device=DEVICE, dtype=torch.bfloat16)
        nothing = torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE)
        queries, contexts = zip(*lens, strict=True)
        self.plan = TritonPlan(
            ForwardBatch(
                token_ids=nothing,
                positions=nothing,
                slot_mapping=nothing,
                query_lens=queries,
                context_lens=contexts,
                block_tables=tables,
                logit_indices=nothing,
                kv_cache=self.caches,
                block_size=BLOCK,
            )
        )
        self.scores = Scores(d**-0.5)

    def fill_qkv(self) -> None:
        """Give the tokens of a single fresh row the keys and values of the cache."""
        for part, cache in enumerate(self.caches[0]):
            pages = cache[self.plan.block_tables[0].long()].transpose(1, 2).reshape(-1, self.hk * self.d)
            start = (self.hq + part * self.hk) * self.d
            self.qkv[:, start : start + self.hk * self.d] = pages[: len(self.q)]

    def check(self, launch: Callable[[], None]) -> None:
        """Compare the last queries of some rows with float32. Raises ``AssertionError``."""
        self.out.fill_(torch.nan)
        launch()
        assert not self.out.isnan().any(), "not all results are written"
        ends = torch.tensor([queries for queries, _ in self.lens]).cumsum(0).tolist()
        longest = max(range(len(ends)), key=lambda row: self.lens[row][1])
        for row in {longest, *random.sample(range(len(ends)), min(3, len(ends)))}:
            queries, context = self.lens[row]
            for back in {1, queries, (queries + 1) // 2}:
                expected = self._expected(row, ends[row] - back, context - back + 1)
                found = self.out[ends[row] - back].float()
                error = ((found - expected).norm() / expected.norm()).item()
                assert error < TOLERANCE, f"row {row}, query {back} from the end: error {error:.3g}"

    def _expected(self, row: int, token: int, context: int) -> Tensor:
        table = self.plan.block_tables[row, : -(-context // BLOCK)].long()
        k, v = (x[table].transpose(1, 2).reshape(-1, self.hk, self.d)[:context].float() for x in self.caches[0])
        q = self.q[token].float().view(self.hk, -1, self.d)
        weights = torch.softmax(torch.einsum("hgd,nhd->hgn", q, k) * self.scores.scale, dim=-1)
        return torch.einsum("hgn,nhd->hgd", weights, v).flatten()


def decode_cases() -> dict[str, list[int]]:
    """Contexts of the rows."""
    rng = random.Random(0)
    return {
        "1 x 512": [512],
        "1 x 8192": [8192],
        "8 x 1025": [1025] * 8,
        "16 x 1025": [1025] * 16,
        "32 x 1025": [1025] * 32,
        "64 x 100..2000": [rng.randint(100, 2000) for _ in range(64)],
        "256 x 100..2000": [rng.randint(100, 2000) for _ in range(256)],
        "64 x 1025": [1025] * 64,
        "63 x 500, 1 x 32768": [500] * 63 + [32768],
    }


def decode(pdl: bool, bandwidth: float) -> None:
    """Print a line for each case: the chosen settings' share of the bandwidth, then the best of the others'."""
    for hq, hk, d in HEADS:
        for name, contexts in decode_cases().items():
            case = Case([(1, context) for context in contexts], hq, hk, d)
            own = settings(len(contexts), hk, hq // hk, 2 * d, max(contexts), False)
            tried = [own] + [own._replace(tile=t, num_warps=w, num_stages=s) for t, w, s in TILES]
            tried += [own._replace(splits=s, min_split=m) for s, m in SPLITS]
            tried += [own._replace(count_arrivals=False)] if own.splits > 1 else []
            results = [(_decode_time(case, s, pdl), s) for s in dict.fromkeys(tried)]
            print(f"{hq}/{hk} x {d}, {name}: " + _decode_line(case, results, bandwidth), flush=True)


def _decode_time(case: Case, chosen: DecodeSettings, pdl: bool) -> float:
    kernel = DecodeAttention(DEVICE)

    def launch(cache: KVLayer) -> None:
        kernel(case.q, cache, case.out, case.plan, case.scores, pdl=pdl, chosen=chosen)

    case.check(lambda: launch(case.caches[0]))
    return each_us([lambda c=cache: launch(c) for cache in case.caches]) / 1e6  # type: ignore[misc]


def _decode_line(case: Case, results: list[tuple[float, DecodeSettings]], bandwidth: float) -> str:
    def show(result: tuple[float, DecodeSettings]) -> str:
        time, s = result
        share = case.bytes / time / (bandwidth * 1e12)
        way = "" if s.count_arrivals else " two kernels"
        return f"{time * 1e6:.1f} us {share:.0%} ({s.tile},{s.num_warps},{s.num_stages}|{s.splits},{s.min_split}{way})"

    return f"own {show(results[0])}; " + "; ".join(show(r) for r in sorted(results[1:])[:4])


class Layer:
    """Rotation, cache write and attention behind the product that gives ``qkv``: one row's as in a layer."""

    def __init__(self, contexts: list[int], hq: int, hk: int, d: int) -> None:
        self.case = Case([(1, context) for context in contexts], hq, hk, d)
        case, plan = self.case, self.case.plan
        plan.positions = torch.tensor(contexts, device=DEVICE) - 1
        block = plan.block_tables.gather(1, plan.positions[:, None] // BLOCK)[:, 0].long()
        plan.slot_mapping = block * BLOCK + plan.positions % BLOCK
        self.cos_sin = torch.rand(max(contexts), d, device=DEVICE)
        self.norms = list(torch.randn(2, d, device=DEVICE, dtype=torch.bfloat16)) if d == 128 else [None, None]
        hidden = 1024
        self.x = torch.randn(len(contexts), hidden, device=DEVICE, dtype=torch.bfloat16)
        shape = (case.qkv.shape[1], hidden)
        self.weights = [torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) / hidden**0.5 for _ in range(8)]
        self.kernel, self.fused = DecodeAttention(DEVICE), FusedDecode(DEVICE)
        self.pdl = use_pdl(torch.device("cuda", torch.cuda.current_device()))

    def product(self, index: int) -> Tensor:
        """The queries, keys and values, from another weight each time."""
        weight = self.weights[index % len(self.weights)]
        return matvec.linear(self.x, weight) if matvec.fits(self.x, weight) else self.x @ weight.T

    def separate(self, qkv: Tensor, cache: KVLayer) -> Tensor:
        """By two kernels."""
        where = self.case.plan.positions, self.case.plan.slot_mapping
        q = rotary.rotate_and_store(qkv, *where, self.cos_sin, *self.norms, 1e-6, cache, pdl=self.pdl)
        out = torch.empty_like(self.case.out)
        self.kernel(q, cache, out, self.case.plan, self.case.scores, pdl=self.pdl)
        return out

    def together(self, qkv: Tensor, cache: KVLayer, chosen: DecodeSettings) -> Tensor:
        """By the fused kernel."""
        around = self.case.plan, self.cos_sin, *self.norms, 1e-6, self.case.scores
        return self.fused(qkv, cache, *around, pdl=self.pdl, chosen=chosen)

    def check(self, chosen: DecodeSettings) -> None:
        """Compare both ways. Raises ``AssertionError``."""
        qkv, cache = self.product(0), self.case.caches[0]
        together = self.together(qkv, cache, chosen).float()
        separate = self.separate(qkv, cache).float()
        error = ((together - separate).norm() / separate.norm()).item()
        assert error < TOLERANCE, f"error {error:.3g}"

    def time(self, attend: Callable[[Tensor, KVLayer], object] | None) -> float:
        """Seconds of a product with ``attend`` behind it."""
        caches = [self.case.caches[i % len(self.case.caches)] for i in range(64)]
        attend = attend or (lambda qkv, cache: None)
        launches = [lambda i=i, c=c: attend(self.product(i), c) for i, c in enumerate(caches)]  # type: ignore[misc]
        return each_us(launches) / 1e6

    def time_together(self, chosen: DecodeSettings) -> float:
        """Seconds of a product with the fused kernel behind it, which is checked first."""
        self.check(chosen)
        return self.time(lambda qkv, cache: self.together(qkv, cache, chosen))


FUSED_SPLITS = [(33, 64), (8, 64), (4, 128), (16, 128), (8, 512)]  # of a row at most, keys of each at least
FUSED_TILES = [(64, 4, 2), (64, 8, 2), (32, 4, 3), (128, 8, 2), (16, 1, 4)]


def fused() -> None:
    """Print a line for each case: microseconds of both ways, and of the fused kernel with other settings."""
    for hq, hk, d in HEADS:
        for contexts in [[128], [512], [1025], [4096], [16384], [1025] * 2, [1025] * 4]:
            layer = Layer(contexts, hq, hk, d)
            own = decode_fused.settings(len(contexts) * hk, 2 * d, max(contexts))
            tried = [own, own._replace(count_arrivals=False)]
            tried += [own._replace(tile=t, num_warps=w, num_stages=s) for t, w, s in FUSED_TILES]
            tried += [own._replace(splits=s, min_split=m) for s, m in FUSED_SPLITS]
            alone = layer.time(None)
            results = [(layer.time_together(s) - alone, s) for s in dict.fromkeys(tried)]
            separate = layer.time(layer.separate) - alone
            name = f"{hq}/{hk} x {d}, {len(contexts)} x {contexts[0]}"
            print(
                f"{name}: separate {separate * 1e6:.1f} us; fused " + _decode_line(layer.case, results, 3.09),
                flush=True,
            )


def prefill(tflops: float) -> None:
    """Print TFLOP/s from pages, from ``qkv`` by pointers and descriptors, and by cuDNN."""
    for queries, context, hq, hk, d in [
        (8192, 8192, 32, 8, 128),
        (8192, 8192, 16, 8, 128),
        (8192, 8192, 32, 8, 64),
        (2048, 2048, 32, 8, 128),
        (512, 512, 16, 8, 128),
        (2048, 16384, 32, 8, 128),
        (64, 8192, 32, 8, 128),
    ]:
        case = Case([(queries, context)], hq, hk, d, copies=1)
        flops = 4 * d * hq * (queries * context - queries * (queries - 1) // 2)
        own = prefill_attention.settings(queries, hq // hk, d, torch.bfloat16, DEVICE, False)
        shown = []
        for way, launch in _prefill_ways(case, queries == context, own):
            try:
                case.check(launch)
                shown.append(f"{way} {flops / each_us([launch]) / 1e6:.0f}")
            except (RuntimeError, AssertionError, torch.OutOfMemoryError) as error:
                shown.append(f"{way} FAILED {str(error).splitlines()[0][:80]}")
        floor = flops / tflops / 1e12
        print(f"{queries} of {context}, {hq}/{hk} x {d} (floor {floor * 1e6:.0f} us): " + "; ".join(shown), flush=True)


def _prefill_ways(case: Case, fresh: bool, own: PrefillSettings) -> list[tuple[str, Callable[[], None]]]:
    group = case.hq // case.hk
    cache, ways = case.caches[0], []

    def pages(s: PrefillSettings) -> None:
        tiles = case.plan.tiles(prefill_attention.queries_per_tile(s, group))
        assert tiles is not None
        prefill_attention.attend_pages(case.q, cache, case.out, case.plan, tiles, case.scores, s)

    def new(s: PrefillSettings) -> None:
        tiles = case.plan.tiles(prefill_attention.queries_per_tile(s, group))
        assert tiles is not None
        prefill_attention.attend_fresh(case.q, case.qkv, cache, case.out, case.plan, tiles, case.scores, s)

    main_shape = (case.hq, case.hk, case.d) == HEADS[
        -1
    ]  # others take only two, as each kernel takes seconds to compile
    others = [PrefillSettings(*s) for s in (PREFILL if main_shape else PREFILL[:2])]
    tried = dict.fromkeys([own._replace(descriptors=False), *others])
    for s in tried:
        ways.append((f"pages {tuple(s[:4])}", lambda s=s: pages(s)))
        if fresh:
            ways.append((f"pointers {tuple(s[:4])}", lambda s=s: new(s)))
            ways.append((f"descriptors {tuple(s[:4])}", lambda s=s: new(s._replace(descriptors=True))))
    if fresh:
        case.fill_qkv()
        if len(case.q) % fresh_attention.STEP == 0 and fresh_attention.is_supported(case.q, case.scores):
            row = FreshRow(0, len(case.q))
            ways.append(
                (
                    "cuDNN",
                    lambda: fresh_attention.attend_whole(case.q, case.qkv, case.hk, case.out, row, case.scores.scale),
                )
            )
    return ways


def main() -> None:
    """Run the part that is asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["decode", "fused", "prefill"])
    parser.add_argument("--pdl", action="store_true", help="chain the launches by programmatic dependent launch")
    parser.add_argument("--bandwidth", type=float, default=3.09, help="of the memory, TB/s")
    parser.add_argument("--tflops", type=float, default=782, help="of bfloat16 products")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.part in (None, "decode"):
        decode(args.pdl, args.bandwidth)
    if args.part in (None, "fused"):
        fused()
    if args.part in (None, "prefill"):
        prefill(args.tflops)


if __name__ == "__main__":
    main()
