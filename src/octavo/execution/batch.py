"""The device's own copy of the batch, and the one argument of the model that is made from it.

A plan says only what changed. Here is the rest: the tokens and the block table of each slot. Tokens sampled in a step
are written here at once, so that the next step can run before they have reached the core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from octavo.core.plan import NewRow, RowStep, StepPlan, table_checksum
from octavo.execution.step_input import Rows
from octavo.kernels.forward_batch import ForwardBatch, KVLayer


class BatchState:
    """Tokens and block tables of ``max_num_seqs`` slots, kept from step to step and changed by the plans' deltas.

    Attributes:
        tokens: ``[max_num_seqs, max_model_len + 1]`` int32: prompt, output, and room for a token sampled one step after
            a stop.
        tables: ``[max_num_seqs, max_blocks]`` int32: the blocks of each slot; 0 beyond them.
        adapters: ``[max_num_seqs]`` int32: the number of each slot's LoRA adapter; 0: none.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.device = device
        # Zero pages cost no memory before they are written to, so the shape may be generous.
        self.tokens = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int32)
        self.tables = np.zeros((max_num_seqs, -(-max_model_len // block_size) + 1), dtype=np.int32)
        self.adapters = np.zeros(max_num_seqs, dtype=np.int32)
        self._num_blocks = np.zeros(max_num_seqs, dtype=np.int64)

    def update(self, plan: StepPlan) -> None:
        """Take in what the plan changes. Raises ``AssertionError`` if its checksum says that the two sides differ."""
        for row in plan.entering:
            self._install(row)
        for step in plan.rows:
            if step.new_blocks:
                self._extend(step.slot, step.new_blocks)
        if plan.checksum is not None:
            assert plan.checksum == self.checksum(plan.rows), (
                f"step {plan.step}: the device's block tables are not the core's"
            )

    def _install(self, row: NewRow) -> None:
        self.tokens[row.slot, : len(row.token_ids)] = row.token_ids
        self.tables[row.slot, : self._num_blocks[row.slot]] = 0
        self._num_blocks[row.slot] = 0
        self.adapters[row.slot] = row.adapter
        self._extend(row.slot, row.block_ids)

    def _extend(self, slot: int, blocks: Sequence[int]) -> None:
        if blocks:
            old = self._num_blocks[slot]
            self.tables[slot, old : old + len(blocks)] = blocks
            self._num_blocks[slot] = old + len(blocks)

    def checksum(self, rows: Sequence[RowStep]) -> int:
        """Of the tables of the rows of a plan; see `octavo.core.plan.table_checksum`."""
        ends = sorted((row.slot, row.start + row.num_tokens) for row in rows)
        return table_checksum((s, end, self.tables[s, : self._num_blocks[s]].tolist()) for s, end in ends)

    def forward_batch(self, rows: Sequence[RowStep], kv_cache: Sequence[KVLayer]) -> ForwardBatch:
        """The model's input for these rows. Index arithmetic is done once here, for all rows together."""
        arrays = Rows.of(rows)
        ends, slot_of_token, positions = arrays.tokens()
        contexts = arrays.starts + arrays.counts
        return ForwardBatch(
            token_ids=self._to_device(self.tokens[slot_of_token, positions]),
            positions=self._to_device(positions),
            slot_mapping=self._to_device(self._places_of(slot_of_token, positions)),
            query_lens=arrays.counts.tolist(),
            context_lens=contexts.tolist(),
            block_tables=self._to_device(self.tables[arrays.slots, : -(-int(contexts.max()) // self.block_size)]),
            logit_indices=self._to_device(ends[arrays.samples] - 1),
            kv_cache=kv_cache,
            block_size=self.block_size,
        )

    def adapters_of(self, rows: Sequence[RowStep]) -> torch.Tensor | None:
        """The number of each token's adapter ``[T]`` int64; None: no row has one."""
        numbers = self.adapters[[row.slot for row in rows]]
        return self._to_device(np.repeat(numbers, [row.num_tokens for row in rows])) if numbers.any() else None

    def _places_of(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where in the cache these tokens belong."""
        block = positions // self.block_size
        offset = positions - block * self.block_size
        return self.tables.take(slots * self.tables.shape[1] + block).astype(np.int64) * self.block_size + offset

    def append(self, rows: Sequence[RowStep], token_ids: np.ndarray) -> None:
        """Write the token that each of ``rows`` sampled behind the ones that it computed."""
        slots = [row.slot for row in rows]
        self.tokens[slots, [row.start + row.num_tokens for row in rows]] = token_ids

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.device)
