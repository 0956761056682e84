"""Products of 2 to 256 rows on a GPU beside cuBLAS's, inside a layer's chain of kernels, where settings are tried.

    python benchmarks/kernels/small_matmul.py [--models 0.6B 1B 8B] [--tokens 16 64 128 256] [--seconds 90] [--out FILE]

First all settings are compiled and compared with cuBLAS by some processes side by side: a setting that does not
compile, is wrong, or does not end is left out and named. Then each is timed in a CUDA graph of several layers, whose
weights come from memory: norm, qkv, a norm in attention's stead, o, norm, gate and up, SiLU, down, chained by
programmatic dependent launch. One product after the other takes the setting with which the layer is fastest; cuBLAS is
among them. The floor is the weights' bytes over 3.09 TB/s, what an H100 80GB reads at best. The last lines are entries
for the table of ``small_matmul_settings``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from graph_timing import graph_us
from products import EPS, MODELS, ROTATED_BYTES, Product
from torch import Tensor

from octavo.kernels.triton import activations, norm
from octavo.kernels.triton import small_matmul_settings as table
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST
from octavo.kernels.triton.small_matmul import SmallProducts
from octavo.kernels.triton.small_matmul_settings import DESCRIPTORS, RING, THREADS, Settings

DEVICE = torch.device("cuda")
TOLERANCE = 1e-2
"""Of two results that are each rounded to bfloat16, and of what a gate makes of them."""
LOADS = {THREADS: "threads", DESCRIPTORS: "descriptors", RING: "ring"}
TRIGGERS = {FIRST: "first", AFTER_WAIT: "after wait", AFTER_SUMS: "after sums"}


LAYER = ("qkv", "o", "gate/up", "down")


@dataclass(frozen=True)
class Choice:
    """How one product is computed. ``settings`` None: by cuBLAS. ``gated``: the gate's activation is fused in."""

    settings: Settings | None = None
    gated: bool = False

    def __str__(self) -> str:
        if self.settings is None:
            return "cuBLAS"
        s = self.settings
        cut = f"{s.tokens}x{s.rows}x{s.depth} splits {s.splits} stages {s.stages} warps {s.warps}"
        return f"{cut} {LOADS[s.loads]}, {TRIGGERS[s.trigger]}{', gated' if self.gated else ''}"


CUBLAS = Choice()


def random_weight(product: Product) -> Tensor:
    return torch.randn(product.rows, product.k, device=DEVICE, dtype=torch.bfloat16) * product.k**-0.5


def choices(product: Product, tokens: int) -> list[Choice]:
    """What is tried, the likeliest first, without cuBLAS."""
    found = [Choice(s, product.gated) for s in cuts(product.n, product.k, tokens, product.gated)]
    if product.gated:
        found += [Choice(s) for s in cuts(product.rows, product.k, tokens, False)[:4]]
    return list(dict.fromkeys(found))


def cuts(n: int, k: int, tokens: int, gated: bool) -> list[Settings]:
    width = table.padded(tokens)
    large = n * k > 1 << 27  # a vocabulary: many rows a program
    found = []
    for part, rows, depth, resident in itertools.product((width, width // 2), (64, 128), (128, 64), (1, 2)):
        sums = part * rows * (1 + gated)
        if (
            (part != width and tokens < 128)
            or sums > 256 * 128
            or (depth == 128 and part > 64)
            or (large and rows < 128)
        ):
            continue
        tile = Settings(part, rows, depth, 1, 1, 4 if sums <= 64 * 128 else 8, RING)
        found.append(table.fill(n, k, tokens, gated, tile, resident))
    others = [replace(s, loads=DESCRIPTORS, stages=min(s.stages, 5)) for s in found[:2]]
    if width <= 64:
        others.append(table.fill(n, k, tokens, gated, Settings(width, 32, 128, 1, 1, 4, THREADS), 1))
        others[-1] = replace(others[-1], stages=min(others[-1].stages, 5))
    return list(dict.fromkeys(found + others))


# Checking: in processes of their own, because a kernel may hang.


@dataclass(frozen=True)
class Case:
    """A choice that is to be checked for a product."""

    product: Product
    tokens: int
    choice: Choice

    @property
    def kernel(self) -> str:
        """What is compiled once."""
        assert self.choice.settings is not None
        return str((replace(self.choice.settings, trigger=FIRST), self.choice.gated))


def cases(models: list[str], tokens: list[int]) -> list[Case]:
    products = [product for name in models for product in MODELS[name]]
    found = [Case(p, t, c) for p in products for t in tokens for c in choices(p, t)]
    return sorted(set(found), key=str)  # cases of the same product and tokens stand together


def check_part(work: list[Case], part: int, parts: int, start: int) -> None:
    """Check the cases from ``start`` on whose kernels fall to ``part``; print a line before and after each."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    products = SmallProducts(DEVICE)
    kernels = sorted({case.kernel for case in work})
    mine = {kernel for i, kernel in enumerate(kernels) if i % parts == part}
    operands: dict[tuple[Product, int], tuple[Tensor, Tensor, Tensor]] = {}
    for index, case in enumerate(work):
        if index >= start and case.kernel in mine:
            print(json.dumps({"index": index}), flush=True)
            try:
                if (case.product, case.tokens) not in operands:
                    operands.clear()
                    operands[case.product, case.tokens] = random_operands(case.product, case.tokens)
                result = check(products, case, *operands[case.product, case.tokens])
            except Exception as error:
                lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
                result = " ".join(lines[:1] + lines[-1:])[:200]
            print(json.dumps({"index": index, "result": result}), flush=True)
            if "CUDA error" in result:  # this process can do no more: go on in a fresh one
                arguments = sys.argv[: sys.argv.index("--from")] if "--from" in sys.argv else sys.argv
                os.execv(sys.executable, [sys.executable, *arguments, "--from", str(index + 1)])


def random_operands(product: Product, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, the weight and their product."""
    torch.manual_seed(0)
    x, weight = torch.randn(tokens, product.k, device=DEVICE).bfloat16(), random_weight(product)
    return x, weight, F.linear(x, weight).float()


def check(products: SmallProducts, case: Case, x: Tensor, weight: Tensor, exact: Tensor) -> str:
    """The empty string if the choice computes its product."""
    found, again = (compute(products, case.choice, x, weight) for _ in range(2))
    if case.choice.gated:
        gate, up = exact.chunk(2, dim=1)
        exact = F.silu(gate) * up
    error = float((found.float() - exact).norm() / exact.norm())
    torch.cuda.synchronize()
    if not error < TOLERANCE:  # NaN, too
        return f"wrong by {error:.1e}"
    return "" if torch.equal(found, again) else "not the same twice"


def compute(products: SmallProducts, choice: Choice, x: Tensor, weight: Tensor) -> Tensor:
    if choice.settings is None:
        return F.linear(x, weight)
    return (products.gate_up if choice.gated else products.linear)(x, weight, None, choice.settings)


def failures(args: argparse.Namespace, work: list[Case]) -> dict[Case, str]:
    """What is wrong with which case, as found by processes that are ended when their time is over."""
    parts = min(args.jobs, len(work))
    command = [sys.executable, __file__, "--models", *args.models, "--tokens", *map(str, args.tokens), "--check"]
    running = [
        subprocess.Popen([*command, f"{i}/{parts}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(parts)
    ]
    deadline = time.monotonic() + 0.55 * args.seconds
    bad = dict.fromkeys(work, "not checked in time")
    for process in running:
        try:
            out, error = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
        collect(work, bad, out)
        if process.returncode > 0:
            print("a process failed:", error.strip()[-500:])
    return {case: reason for case, reason in bad.items() if reason}


def collect(work: list[Case], bad: dict[Case, str], out: str) -> None:
    """Take in the lines of ``check_part``."""
    for line in out.splitlines():
        if line.startswith("{") and line.endswith("}"):
            entry = json.loads(line)
            bad[work[entry["index"]]] = entry.get("result", "did not end")


# Timing.


Config = dict[str, Choice]
Entries = dict[tuple[int, int, bool], dict[int, Settings | None]]


class Layers:
    """Some layers of a model, as many as are needed to read their weights from memory."""

    def __init__(self, products: dict[str, Product], tokens: int) -> None:
        self.products, self.tokens = products, tokens
        self.matmul = SmallProducts(DEVICE)
        layer_bytes = sum(products[name].rows * products[name].k * 2 for name in LAYER)
        self.count = max(2, -(-ROTATED_BYTES // layer_bytes))
        self.weights = {name: [random_weight(products[name]) for _ in range(self.count)] for name in LAYER}
        self.head = [random_weight(products["head"]) for _ in range(2)]
        h = products["qkv"].k
        self.x = torch.randn(tokens, h, device=DEVICE).bfloat16()
        self.gains = {k: torch.rand(k, device=DEVICE).bfloat16() for k in (h, products["o"].k)}

    def us(self, config: Config, early: bool) -> float:
        return graph_us(lambda: self.run(config, early), self.count)

    def run(self, config: Config, early: bool) -> None:
        x, residual = self.x.clone(), torch.zeros(self.x.shape, device=DEVICE)
        for i in range(self.count):
            x, residual = self.layer(x, residual, i, config, early)

    def layer(self, x: Tensor, residual: Tensor, i: int, config: Config, early: bool) -> tuple[Tensor, Tensor]:
        how = {"pdl": True, "early": early}
        x, residual = norm.add_rms_norm(x, residual, self.gains[x.shape[1]], EPS, **how)
        qkv = self.product("qkv", x, i, config)
        k = self.products["o"].k
        x = self.product("o", norm.rms_norm(qkv[:, :k], self.gains[k], EPS, **how), i, config)
        x, residual = norm.add_rms_norm(x, residual, self.gains[x.shape[1]], EPS, **how)
        y = self.product("gate/up", x, i, config)
        y = y if config["gate/up"].gated else activations.silu_mul(y, pdl=True)
        return self.product("down", y, i, config), residual

    def product(self, name: str, x: Tensor, i: int, config: Config) -> Tensor:
        return compute(self.matmul, config[name], x, self.weights[name][i])

    def head_us(self, choice: Choice) -> float:
        """With the norm before it."""

        def run() -> None:
            for weight in self.head:
                x = norm.rms_norm(self.x, self.gains[self.x.shape[1]], EPS, pdl=True)
                compute(self.matmul, choice, x, weight)

        return graph_us(run, len(self.head))


@dataclass
class Trial:
    model: str
    tokens: int
    product: str
    choice: str
    us: float


class Search:
    """The fastest choices for one model and number of tokens, and what was tried, which is also added to ``log``."""

    def __init__(
        self, name: str, tokens: int, layers: Layers, fine: Callable[[Product, Choice], bool], log: list[Trial]
    ) -> None:
        self.name, self.tokens, self.layers, self.fine = name, tokens, layers, fine
        self.trials: list[Trial] = []
        self._log = log

    def options(self, product: str) -> list[Choice]:
        p = self.layers.products[product]
        return [c for c in choices(p, self.tokens) if self.fine(p, c)]

    def time(self, what: str, choice: object, run: Callable[[], float]) -> float:
        """Infinite if it fails."""
        try:
            us = run()
        except Exception as error:
            print(f"    {what} {choice} failed: {type(error).__name__}: {str(error)[:200]}")
            us = float("inf")
        self.trials.append(Trial(self.name, self.tokens, what, str(choice), us))
        self._log.append(self.trials[-1])
        return us

    def layer(self) -> tuple[Config, bool, float]:
        """The best choices of a layer's products, whether norms trigger early, and the time."""
        config = {name: (self.options(name) or [CUBLAS])[0] for name in LAYER}
        config, early = self._triggers(config)
        for name in LAYER:
            trigger = (config[name].settings or Settings(16, 64)).trigger
            config = self._best(name, [with_trigger(c, trigger) for c in self.options(name)] + [CUBLAS], config, early)
        for name in LAYER:
            if config[name].settings is not None:
                config = self._best(name, [with_trigger(config[name], t) for t in TRIGGERS], config, early)
        times = {e: self.time("norms", f"early {e}", lambda e=e: self.layers.us(config, e)) for e in (False, True)}
        early = times[True] < times[False]
        return config, early, times[early]

    def _triggers(self, config: Config) -> tuple[Config, bool]:
        """The trigger that is best for all products together."""
        found = []
        for trigger, early in itertools.product(TRIGGERS, (False, True)):
            tried = {name: with_trigger(choice, trigger) for name, choice in config.items()}
            us = self.time("all", (TRIGGERS[trigger], early), lambda t=tried, e=early: self.layers.us(t, e))
            found.append((us, trigger, early))
        _, trigger, early = min(found)
        return {name: with_trigger(choice, trigger) for name, choice in config.items()}, early

    def _best(self, name: str, options: list[Choice], config: Config, early: bool) -> Config:
        tried = [{**config, name: choice} for choice in options]
        times = [self.time(name, t[name], lambda t=t: self.layers.us(t, early)) for t in tried]
        return tried[times.index(min(times))]

    def head(self) -> tuple[Choice, float]:
        options = [CUBLAS, *self.options("head")]
        times = [self.time("head", c, lambda c=c: self.layers.head_us(c)) for c in options]
        return options[times.index(min(times))], min(times)


def with_trigger(choice: Choice, trigger: int) -> Choice:
    return choice if choice.settings is None else replace(choice, settings=replace(choice.settings, trigger=trigger))


def report(search: Search, entries: Entries) -> None:
    """Search, print, and add to the entries for the table."""
    layers, name, tokens = search.layers, search.name, search.tokens
    plain = dict.fromkeys(LAYER, CUBLAS)
    before = search.time("all", CUBLAS, lambda: layers.us(plain, False))
    config, early, us = search.layer()
    after = search.time("all", CUBLAS, lambda: layers.us(plain, False))
    head, head_us = search.head()
    floor = sum(layers.products[p].floor for p in LAYER)
    print(f"\n{name}, {tokens} tokens: a layer {us:.2f} us, norms early {early}; floor of its weights {floor:.2f}")
    print(f"  cuBLAS   {before:.2f} and again {after:.2f}")
    for product in LAYER:
        trials = [t for t in search.trials if t.product == product]
        library = min((t.us for t in trials if t.choice == "cuBLAS"), default=float("nan"))
        ranked = sorted(trials, key=lambda t: t.us)[:3]
        print(f"  {product:8} {config[product]}   (the layer with cuBLAS here {library:.2f})")
        print("           " + "; ".join(f"{t.us:.2f} {t.choice}" for t in ranked))
    library = next(t.us for t in search.trials if t.product == "head" and t.choice == "cuBLAS")
    print(
        f"  head     {head_us:.1f}, cuBLAS {library:.1f}, floor {layers.products['head'].floor:.1f}: {head}", flush=True
    )
    for product, choice in {**config, "head": head}.items():
        p = layers.products[product]
        rows = p.n if choice.gated or not p.gated else p.rows
        if p.gated:
            entries.setdefault((p.n, p.k, True), {})[tokens] = None
        entries.setdefault((rows, p.k, choice.gated), {})[tokens] = choice.settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 64, 128, 256])
    parser.add_argument("--seconds", type=float, default=90, help="begin nothing new after so long")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that compile")
    parser.add_argument("--out", type=Path, help="where to write all times, as JSON")
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--from", type=int, default=0, dest="start", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = cases(args.models, args.tokens)
    if args.check:
        part, parts = map(int, args.check.split("/"))
        check_part(work, part, parts, args.start)
    else:
        run(args, work)


def run(args: argparse.Namespace, work: list[Case]) -> None:
    begin = time.monotonic()
    bad = failures(args, work)
    print(f"{len(work)} cases of {len({c.kernel for c in work})} kernels checked in {time.monotonic() - begin:.0f} s")
    for reason, group in itertools.groupby(sorted(bad.items(), key=lambda item: item[1]), key=lambda item: item[1]):
        of = [f"{case.product.n}x{case.product.k} T={case.tokens} {case.choice}" for case, _ in group]
        print(f"  {len(of)} left out, {reason}: {of[:3]}", flush=True)
    trials: list[Trial] = []
    entries: Entries = {}
    torch.manual_seed(0)
    for name, tokens in itertools.product(args.models, args.tokens):
        if time.monotonic() - begin > args.seconds:
            print(f"no time left for {name}, {tokens} tokens")
            continue
        try:
            layers = Layers({product.name: product for product in MODELS[name]}, tokens)
            search = Search(name, tokens, layers, lambda p, c, t=tokens: Case(p, t, c) not in bad, trials)
            report(search, entries)
        except Exception as error:
            print(f"{name}, {tokens} tokens: {type(error).__name__}: {str(error)[:300]}", flush=True)
        if args.out:
            args.out.write_text(json.dumps([asdict(trial) for trial in trials]))
    print(f"\nentries ({time.monotonic() - begin:.0f} s in all):")
    for shape, found in entries.items():
        print(f"    {shape}: {found},")


if __name__ == "__main__":
    main()
