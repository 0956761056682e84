"""``octavo check``: load a model, run the same requests on ways that must agree, and compare.

All engines have had silent corruption in exactly these pairs. The first run, each prompt alone, whole and without the
prefix cache, is what the others are compared with; those that need other kernels, other weights or no cache load the
model again, after the first has been let go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from octavo.check.dense import DenseOps
from octavo.check.layers import LayerReport, Recorded, compare_layers, record
from octavo.check.pairs import RELATIVE, PairResult, judge, judge_quantized, skipped
from octavo.check.rig import Rig, rig
from octavo.check.trace import Trace, difference, follow, run
from octavo.check.workload import Workload, make_workload
from octavo.config import EngineConfig
from octavo.errors import OctavoError
from octavo.execution.build import choose_device, choose_dtype
from octavo.kernels import for_device
from octavo.kernels.ops import Ops
from octavo.kernels.packed import PackedWeight
from octavo.layers.weight import Matrix
from octavo.text.tokenizer import Tokenizer
from octavo.weights.checkpoint import Checkpoint

CACHED = "cached / uncached prefix"
CHUNKED = "chunked / whole prompt"
BATCHED = "batched / alone"
AHEAD = "planned ahead / in step"
EAGER = "graph / eager"
REFERENCE = "backend / reference"
DENSE = "paged / dense"
QUANTIZED = "quantized / not"
DETERMINISTIC = "deterministic: alone / batched"

NUM_PAIRS = 9

CHUNK = 7
"""Tokens of a step when prompts are cut: no multiple of a block."""

NO_GPU = "needs a GPU"

T = TypeVar("T")


@dataclass(slots=True)
class CheckReport:
    """All pairs in the order in which they were run, and the layers if these were asked for."""

    model: str
    device: str
    dtype: str
    quantization: str | None
    requests: int
    max_tokens: int
    pairs: list[PairResult]
    layers: LayerReport | None = None

    @property
    def failed(self) -> bool:
        return any(pair.status == "FAIL" for pair in self.pairs) or (self.layers is not None and self.layers.differs)


def check_model(
    config: EngineConfig,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    *,
    quick: bool = False,
    layers: bool = False,
    on_pair: Callable[[PairResult], Any] = lambda pair: None,
) -> CheckReport:
    """Run all pairs that this device can.

    Args:
        config: of the engine that is to be proved right.
        quick: fewer and shorter requests.
        layers: also compare each layer with the reference's.
        on_pair: told of each pair as soon as it is done.
    """
    config = config.on(choose_device(config.device))
    length = config.max_model_len or checkpoint.config.max_position_embeddings
    work = make_workload(tokenizer, checkpoint.config.vocab_size, length, quick=quick, seed=config.seed)
    config = _sized(config, work, checkpoint)
    check = _Check(config, checkpoint, work)
    report = CheckReport(
        config.model, config.device, check.dtype, config.quantization, len(work.prompts), work.max_tokens, []
    )
    for pair in check.pairs():
        report.pairs.append(pair)
        on_pair(pair)
    if layers:
        report.layers = check.layers()
    return report


class _Check:
    """The state of a check: what the first run said, and whether its model has packed matrices."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint, work: Workload) -> None:
        self.config, self.checkpoint, self.work = config, checkpoint, work
        self.on_gpu = config.device != "cpu"
        device = torch.device(config.device)
        self.dtype = choose_dtype(config.dtype, checkpoint.config.dtype, device)
        self.coarsest = config.kv_cache_dtype if config.kv_cache_dtype in ("int8", "fp8") else self.dtype
        self.ops = for_device(device, deterministic=config.deterministic)
        self.alone: list[Trace] = []
        self.packed = False

    def pairs(self) -> Iterator[PairResult]:
        with rig(self.config, self.checkpoint) as own:
            self.alone, self.packed = self._alone(own), _has_packed(own)
            yield self._chunked(own)
            yield self._batched(own)
            yield self._cached(own)
            yield self._ahead(own)
        yield self._eager()
        yield from self._references()
        yield self._quantized()
        yield self._deterministic()

    def layers(self) -> LayerReport:
        """Compare what comes out of each layer, with the device's operations and with the reference's."""
        config = replace(self.config, enforce_eager=True, enable_prefix_caching=False)
        prompt = [max(self.work.prompts, key=len)]

        def recorded(ops: Ops | None) -> Recorded:
            with rig(config, self.checkpoint, ops=ops) as own, own.engine() as engine, record(own.model) as said:
                run(engine, prompt, 4)
            return said

        return compare_layers(recorded(None), recorded(DenseOps(self.ops)), self._beside_reference)

    @property
    def _beside_reference(self) -> str:
        """What in `RELATIVE` says how far the device's operations may be from the reference's."""
        rounds = self.packed and not self.on_gpu and self.dtype == "bfloat16"
        return max(self.coarsest, "rounded", key=RELATIVE.__getitem__) if rounds else self.coarsest

    def _alone(self, own: Rig) -> list[Trace]:
        with own.engine(enable_prefix_caching=False) as engine:
            return run(engine, self.work.prompts, self.work.max_tokens, prompt_scores=True)

    def _judge(self, name: str, other: Sequence[Trace], seconds: float, kind: str | None = None) -> PairResult:
        return judge(name, difference(self.alone, other), kind or self.coarsest, seconds)

    def _run(self, own: Rig, *, together: bool = False, prompt_scores: bool = False, **changes: Any) -> list[Trace]:
        with own.engine(**changes) as engine:
            return run(engine, self.work.prompts, self.work.max_tokens, together=together, prompt_scores=prompt_scores)

    def _chunked(self, own: Rig) -> PairResult:
        sizes: dict[str, Any] = {"max_num_seqs": min(CHUNK, self.config.max_num_seqs), "max_num_batched_tokens": CHUNK}
        traces, seconds = _timed(lambda: self._run(own, prompt_scores=True, enable_prefix_caching=False, **sizes))
        return self._judge(CHUNKED, traces, seconds)

    def _batched(self, own: Rig) -> PairResult:
        traces, seconds = _timed(lambda: self._run(own, together=True, enable_prefix_caching=False))
        return self._judge(BATCHED, traces, seconds)

    def _cached(self, own: Rig) -> PairResult:
        """The second time, each prompt's full blocks come from the cache."""
        if not self.config.enable_prefix_caching:
            return skipped(CACHED, "prefix caching is off")
        with own.engine() as engine:
            run(engine, self.work.prompts, self.work.max_tokens)
            traces, seconds = _timed(lambda: run(engine, self.work.prompts, self.work.max_tokens))
        if not any(trace.cached for trace in traces):
            return skipped(CACHED, f"no prompt fills a block of {self.config.block_size}")
        return self._judge(CACHED, traces, seconds)

    def _ahead(self, own: Rig) -> PairResult:
        """Both ways are run: which one is the engine's own depends on the device."""
        in_step = self._run(own, together=True, async_scheduling=False)
        ahead, seconds = _timed(lambda: self._run(own, together=True, async_scheduling=True))
        return judge(AHEAD, difference(in_step, ahead), self.coarsest, seconds)

    def _eager(self) -> PairResult:
        if not self.on_gpu:
            return skipped(EAGER, f"{NO_GPU}: CUDA graphs")
        if self.config.enforce_eager:
            return skipped(EAGER, "the engine is eager already")
        with rig(replace(self.config, enforce_eager=True), self.checkpoint) as eager:
            traces, seconds = _timed(lambda: self._alone(eager))
        return self._judge(EAGER, traces, seconds)

    def _references(self) -> Iterator[PairResult]:
        """With the reference's kernels; then without the cache, the whole text at once."""
        ops = DenseOps(self.ops)
        packed = "none" if self.config.deterministic else self.config.quantization  # the same weights as there
        config = replace(self.config, enforce_eager=True, deterministic=False, quantization=packed)
        with rig(config, self.checkpoint, ops=ops) as reference:
            traces, seconds = _timed(lambda: self._alone(reference))
            yield self._judge(REFERENCE, traces, seconds, self._beside_reference)
            ops.dense, ops.paged_steps = True, 0
            with reference.engine(enable_prefix_caching=False) as engine:
                traces, seconds = _timed(lambda: follow(engine, self.work.prompts, self.alone))
            if ops.paged_steps:
                yield skipped(DENSE, f"max_num_batched_tokens={config.max_num_batched_tokens} cuts the prompts")
            else:
                yield self._judge(DENSE, traces, seconds, self._beside_reference)

    def _quantized(self) -> PairResult:
        """An 8-bit form is held to more than a 4-bit one; weights that the file has packed are the same in both."""
        if not self.packed:
            return skipped(QUANTIZED, "nothing is quantized (--quantize)")
        try:
            config = replace(self.config, quantization="none")
            with rig(config, self.checkpoint) as plain, plain.engine(enable_prefix_caching=False) as engine:
                traces, seconds = _timed(lambda: follow(engine, self.work.prompts, self.alone))
        except OctavoError as error:  # what is too large unless it is quantized
            return skipped(QUANTIZED, f"the plain model cannot be loaded: {error}")
        bits = 4 if "4" in str(self.config.quantization) else 8
        return judge_quantized(QUANTIZED, difference(self.alone, traces), bits, seconds)

    def _deterministic(self) -> PairResult:
        if not self.on_gpu:
            return skipped(DETERMINISTIC, f"{NO_GPU}: deterministic=True")
        if self.config.quantization not in (None, "none"):
            return skipped(DETERMINISTIC, f"not with quantization={self.config.quantization!r}")
        with rig(replace(self.config, deterministic=True), self.checkpoint) as same:
            alone = self._run(same, enable_prefix_caching=False)
            batched, seconds = _timed(lambda: self._run(same, together=True))
        return judge(DETERMINISTIC, difference(alone, batched), self.coarsest, seconds, exact=True)


def _sized(config: EngineConfig, work: Workload, checkpoint: Checkpoint) -> EngineConfig:
    """Room for the check's requests, and no more: the model is loaded several times."""
    length = config.max_model_len or min(work.longest + 8, checkpoint.config.max_position_embeddings)
    seqs = min(config.max_num_seqs, len(work.prompts))
    return replace(config, max_model_len=length, max_num_seqs=seqs)


def _has_packed(own: Rig) -> bool:
    """Whether any matrix is multiplied with in fewer bits, not as plain numbers in whichever order."""
    operands = [module.operand for module in own.model.modules() if isinstance(module, Matrix)]
    return any(isinstance(operand, PackedWeight) and operand.is_quantized for operand in operands)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.monotonic()
    return work(), time.monotonic() - begin
