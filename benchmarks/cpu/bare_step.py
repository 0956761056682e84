"""Decode steps without prompts, scheduler or text: plans made beforehand go straight to the runner, or the model.

So a step can be timed with any context and any number of rows. The KV cache is filled with small random numbers
first: memory that nobody has written to would not be read from memory.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from octavo.config import EngineConfig
from octavo.core.plan import NewRow, RowStep, StepPlan
from octavo.execution.build import build_runner
from octavo.execution.decode_steps import DecodeSteps
from octavo.kernels import for_device
from octavo.layers.weight import Matrix
from octavo.sampling_params import SamplingParams
from octavo.weights.open import open_checkpoint
from octavo.weights.source import resolve

PATTERN = 1 << 20
"""Random numbers that the KV cache is filled with, again and again."""


class BareSteps:
    """A model and its runner.

    Attributes:
        config: of the model.
        kv_tokens: what the KV cache holds.
        longest: context that the engine takes.
        weight_bytes: that a decode step reads: all matrices, as they lie in memory.
        kv_bytes_per_token: that it reads for each token of each context.
    """

    def __init__(self, model: str, **options: Any) -> None:
        engine = EngineConfig.from_kwargs(model, **options).on("cpu")
        checkpoint = open_checkpoint(resolve(model), weights=engine.load_format != "dummy")
        self._ops = for_device("cpu")
        self._runner, ledger = build_runner(engine, checkpoint, ops=self._ops)
        self.config = checkpoint.config
        self.kv_tokens, self.longest, self._block_size = ledger.kv_tokens, ledger.max_model_len, ledger.block_size
        self.weight_bytes = sum(m.operand.nbytes for m in self._runner.model.modules() if isinstance(m, Matrix))
        self.kv_bytes_per_token = sum(layer.nbytes for layer in self._runner.kv_cache) // ledger.kv_tokens
        self._step = 0
        self._fill_cache()

    def _fill_cache(self) -> None:
        pattern = torch.randn(PATTERN) * 0.5
        for layer in self._runner.kv_cache:
            for tensor in layer.tensors:
                flat = tensor.view(-1)
                numbers = (pattern if tensor.is_floating_point() else pattern * 100).to(tensor.dtype)
                for piece in flat.split(PATTERN):
                    piece.copy_(numbers[: len(piece)])

    def fits(self, rows: int, context: int, steps: int) -> bool:
        return rows * self._blocks(context + steps) <= self.kv_tokens // self._block_size

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_size)

    def decode(self, rows: int, context: int, steps: int) -> list[float]:
        """Seconds of each of ``steps`` decode steps of ``rows`` rows. In the first one each token sees ``context``
        tokens, itself included; in each further one, one more.
        """
        plans = self._plans(rows, context, steps)
        return [self._timed(plan) for plan in plans]

    @torch.inference_mode()
    def model(self, rows: int, context: int, steps: int) -> list[float]:
        """Seconds of the model alone, without the sampler and what a step needs before: the same step again and again,
        in which each token sees ``context`` tokens.
        """
        [plan] = self._plans(rows, context, 1)
        self._runner.state.update(plan)
        batch = self._runner.state.forward_batch(plan.rows, self._runner.kv_cache)
        batch.attention = self._ops.plan_attention(batch)
        decode, seconds = DecodeSteps(self._runner.model, self._ops), []
        for _ in range(steps):
            start = time.perf_counter()
            decode.logits(batch)
            seconds.append(time.perf_counter() - start)
        return seconds

    def led(self, sequences: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Lead rows through ``sequences``, equally long: each step computes the next token of each. Yields what each
        row would have gone on with: after the first tokens, after the first two, ….
        """
        rows, length = len(sequences), len(sequences[0])
        entering = tuple(self._new_row(slot, ids[:1], length) for slot, ids in enumerate(sequences))
        for at in range(length - 1):
            self._runner.state.tokens[:rows, at] = [ids[at] for ids in sequences]
            row_steps = tuple(RowStep(slot, at, 1, (), True) for slot in range(rows))
            yield self._runner.run(StepPlan(self._step, row_steps, entering if at == 0 else ()), dict).token_ids
            self._step += 1

    def _timed(self, plan: StepPlan) -> float:
        start = time.perf_counter()
        result = self._runner.run(plan, dict)
        seconds = time.perf_counter() - start
        assert not result.errors, result.errors
        return seconds

    def _plans(self, rows: int, context: int, steps: int) -> Sequence[StepPlan]:
        entering = tuple(self._new_row(slot, self._random_tokens(slot, context), steps) for slot in range(rows))
        plans = []
        for i in range(steps):
            row_steps = tuple(RowStep(slot, context - 1 + i, 1, (), True) for slot in range(rows))
            plans.append(StepPlan(self._step + i, row_steps, entering if i == 0 else ()))
        self._step += steps
        return plans

    def _random_tokens(self, seed: int, count: int) -> list[int]:
        return random.Random(seed).choices(range(self.config.vocab_size), k=count)

    def _new_row(self, slot: int, tokens: Sequence[int], steps: int) -> NewRow:
        count = self._blocks(len(tokens) + steps)
        return NewRow(
            slot=slot,
            request_id=f"row-{slot}",
            token_bytes=array("q", tokens).tobytes(),
            num_prompt_tokens=len(tokens),
            params=SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True),
            seed=slot,
            eos_token_ids=(),
            bad_words=(),
            block_ids=tuple(range(slot * count, (slot + 1) * count)),
        )
