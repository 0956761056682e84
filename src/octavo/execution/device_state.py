"""The batch as a GPU keeps it: block tables and newest tokens of all slots, changed by the plans' deltas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import NewRow
from octavo.execution.batch import BatchState
from octavo.execution.step_input import Rows, Shape, Staging, StepInput, smaller
from octavo.kernels.forward_batch import DeviceRows, ForwardBatch, KVLayer
from octavo.kernels.ops import Ops
from octavo.kernels.sampling import LastTokens

UNKNOWN = -1
"""An adapter's number that is not surely on the device: whoever enters next says what it is."""


class DeviceState(BatchState):
    """`BatchState` whose block tables are also on the device, and whose sampled tokens are only there.

    The line and the slot after the last are nobody's: rows that fill up a graph use them, and the trash block.

    Attributes:
        device_tables: int32 ``[max_num_seqs + 1, max_blocks]``.
        last_tokens: int32 ``[max_num_seqs + 1]``: what each slot sampled last, and is to compute next.
        device_adapters: int32 ``[max_num_seqs + 1]``: the number of each slot's LoRA adapter; 0: none.
        trash_block: a block of the cache that belongs to no request.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device, trash_block: int
    ) -> None:
        super().__init__(max_num_seqs, max_model_len, block_size, device)
        self.trash_block = trash_block
        self._num_known = np.zeros(max_num_seqs, dtype=np.int64)
        lines, width = max_num_seqs + 1, self.tables.shape[1]
        self._words = torch.zeros(lines * (width + 2), dtype=torch.int32, device=device)
        self.device_tables = self._words[: lines * width].view(lines, width)
        self.last_tokens, self.device_adapters = self._words[lines * width :].view(2, lines)
        self.device_tables[-1] = trash_block
        # Changes that are not on the device yet: words of ``_words``, and what comes there.
        self._places: list[int] = []
        self._values: list[int] = []

    @property
    def nobody(self) -> int:
        """The slot of rows that fill up a graph."""
        return len(self.device_tables) - 1

    def _install(self, row: NewRow) -> None:
        if row.adapter != self.adapters[row.slot]:
            self._places.append(len(self._words) - len(self.device_adapters) + row.slot)
            self._values.append(row.adapter)
        super()._install(row)
        self._num_known[row.slot] = len(row.token_ids)

    def _extend(self, slot: int, blocks: Sequence[int]) -> None:
        if blocks:
            first = slot * self.tables.shape[1] + int(self._num_blocks[slot])
            self._places += range(first, first + len(blocks))
            self._values += blocks
        super()._extend(slot, blocks)

    def note_given_tokens(self, rows: Rows) -> None:
        """A row that decodes finds its token in ``last_tokens``: put it there if it was not sampled but given."""
        given = (rows.counts == 1) & (rows.starts < self._num_known[rows.slots])
        if given.any():
            slots = rows.slots[given]
            self._places += (self.device_tables.numel() + slots).tolist()
            self._values += self.tokens[slots, rows.starts[given]].tolist()

    def send(self, staging: Staging) -> None:
        """Bring to the device what has changed since the last time."""
        if not self._places:
            return
        words = staging.take(2 * len(self._places))
        words.numpy()[:] = self._places + self._values
        self._places, self._values = [], []
        changes = staging.send(words).view(2, -1)
        self._words.index_copy_(0, changes[0].long(), changes[1])

    def forget_changes(self) -> None:
        """Of a step that failed before they were sent: they must not come with those of the next one."""
        self._places, self._values = [], []
        self.adapters[:] = UNKNOWN

    def fill(self, rows: Rows, out: StepInput[np.ndarray]) -> bool:
        """Write all but ``params`` of a step's input; whether a token id in it is one that ``resolve`` replaces."""
        slots, starts, counts, samples = rows
        ends, slot_of_token, positions = rows.tokens()
        begins = ends - counts
        np.take(self.tokens, slot_of_token * self.tokens.shape[1] + positions, out=out.token_ids, mode="clip")
        unknown = starts >= self._num_known[slots]  # a token that was sampled is the only one of its row
        out.token_ids[begins[unknown]] = -1 - slots[unknown]
        out.positions[:] = positions
        out.slot_mapping[:] = self._places_of(slot_of_token, positions)
        out.query_starts[0], out.query_starts[1:] = 0, ends
        out.context_lens[:] = starts + counts
        out.table_rows[:] = slots
        out.logit_indices[:] = ends[samples] - 1
        out.sample_slots[:] = slots[samples]
        return bool(unknown.any())

    def fill_decode(self, slots: np.ndarray, starts: np.ndarray, out: StepInput[np.ndarray]) -> None:
        """The same where each row has one token, which is in ``last_tokens``, and samples; ``out`` may have more rows,
        which compute the trash block's first token.
        """
        n = len(slots)
        out.positions[:n], out.positions[n:] = starts, 0
        out.slot_mapping[:n] = self._places_of(slots, starts)
        out.slot_mapping[n:] = self.trash_block * self.block_size
        out.context_lens[:n], out.context_lens[n:] = starts + 1, 1
        out.table_rows[:n], out.table_rows[n:] = slots, self.nobody
        out.sample_slots[:n], out.sample_slots[n:] = slots, -1

    def fill_mixed(self, rows: Rows, out: StepInput[np.ndarray]) -> None:
        """The same where ``out`` may have more tokens and rows, and each row of it samples: those that need not have
        no slot.
        """
        tokens, count = int(rows.counts.sum()), len(rows.slots)
        every = rows._replace(samples=np.ones(count, dtype=np.bool_))
        self.fill(every, smaller(out, Shape(tokens, count, count)))
        out.sample_slots[:count][~rows.samples] = -1
        self.fill_up(out, tokens, count)

    def fill_up(self, out: StepInput[np.ndarray], num_tokens: int, num_rows: int) -> None:
        """Write tokens and rows that are nobody's behind the first ones: the rows have no token, and the tokens, which
        belong to no row, compute the trash block's first.
        """
        for part in (out.token_ids, out.positions):
            part[num_tokens:] = 0
        out.slot_mapping[num_tokens:] = self.trash_block * self.block_size
        for part in (out.params, out.context_lens, out.logit_indices):
            part[num_rows:] = 0
        out.query_starts[num_rows:] = num_tokens
        out.table_rows[num_rows:] = self.nobody
        out.sample_slots[num_rows:] = -1

    def resolve(self, token_ids: Tensor) -> Tensor:
        """Token ids with those that stand for what a slot sampled replaced by it."""
        return torch.where(token_ids < 0, self.last_tokens[(-1 - token_ids).clamp_(min=0)], token_ids)

    def batch_of(
        self,
        inputs: StepInput[Tensor],
        token_ids: Tensor,
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        kv_cache: Sequence[KVLayer],
        *,
        bounds_only: bool = False,
    ) -> ForwardBatch:
        """The model's input, without the plan of its attention. ``bounds_only``: the lengths are not exceeded."""
        return ForwardBatch(
            token_ids=token_ids,
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            query_lens=query_lens,
            context_lens=context_lens,
            block_tables=self.device_tables,
            logit_indices=inputs.logit_indices,
            kv_cache=kv_cache,
            block_size=self.block_size,
            rows=DeviceRows(inputs.query_starts, inputs.context_lens, inputs.table_rows),
            bounds_only=bounds_only,
        )

    def adapters_on_device(self, inputs: StepInput[Tensor]) -> Tensor:
        """The number of each token's adapter ``[T]`` int32, worked out on the device; a token that belongs to no row
        has that of the last row.
        """
        tokens = torch.arange(len(inputs.positions), dtype=torch.int32, device=self.device)
        row = torch.searchsorted(inputs.query_starts[1:], tokens, right=True).clamp_(max=len(inputs.table_rows) - 1)
        return self.device_adapters.index_select(0, inputs.table_rows.index_select(0, row))

    def sample(self, ops: Ops, logits: Tensor, inputs: StepInput[Tensor], *, filters: bool) -> Tensor:
        """Choose a token for each row of ``logits [S, V]``, the first S of ``inputs``: int64 ``[S]``, -1 for none.

        They become ``last_tokens``.
        """
        rows = len(logits)
        last = LastTokens(inputs.sample_slots[:rows], self.last_tokens)
        sampled = ops.sample(logits, inputs.params[:rows], last, filters=filters)
        return sampled.token_ids.masked_fill(sampled.bad, -1)
