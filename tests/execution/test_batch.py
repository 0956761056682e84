"""The device's copy of the batch, against plans made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo import SamplingParams
from octavo.core.plan import NewRow, RowStep, StepPlan, table_checksum
from octavo.core.request import token_array
from octavo.execution.batch import BatchState
from octavo.kernels.forward_batch import KVLayer

SIZE = 4


def new_row(slot: int, tokens: range | list[int], blocks: tuple[int, ...] = ()) -> NewRow:
    return NewRow(slot, f"r{slot}", token_array(tokens).tobytes(), len(tokens), SamplingParams(), 0, (), (), blocks)


@pytest.fixture
def state() -> BatchState:
    return BatchState(3, 32, SIZE, torch.device("cpu"))


def batch_of(state: BatchState, plan: StepPlan):
    state.update(plan)
    return state.forward_batch(plan.rows, [KVLayer.zeros(16, SIZE, 1, 2, torch.float32)])


def test_a_mixture_of_rows_becomes_one_flat_batch(state):
    plan = StepPlan(
        0,
        rows=(RowStep(2, 0, 5, (7, 3), True), RowStep(0, 4, 2, (9,), False)),
        entering=(new_row(2, range(10, 15)), new_row(0, range(20, 30), (5,))),
    )
    batch = batch_of(state, plan)
    assert batch.token_ids.tolist() == [10, 11, 12, 13, 14, 24, 25]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert batch.slot_mapping.tolist() == [28, 29, 30, 31, 12, 36, 37]
    assert (batch.query_lens, batch.context_lens) == ([5, 2], [5, 6])
    assert batch.block_tables.tolist() == [[7, 3], [5, 9]]
    assert batch.logit_indices.tolist() == [4]


def test_a_sampled_token_is_the_next_steps_input(state):
    first = StepPlan(0, (RowStep(1, 0, 3, (2,), True),), (new_row(1, [7, 8, 9]),))
    batch_of(state, first)
    state.append(first.rows, np.array([42]))
    batch = batch_of(state, StepPlan(1, (RowStep(1, 3, 1, (), True),)))
    assert batch.token_ids.tolist() == [42]
    assert batch.slot_mapping.tolist() == [11]


def test_a_slots_next_request_sees_nothing_of_the_last(state):
    batch_of(state, StepPlan(0, (RowStep(0, 0, 12, (4, 5, 6), True),), (new_row(0, range(12)),)))
    batch = batch_of(state, StepPlan(1, (RowStep(0, 0, 2, (8,), True),), (new_row(0, [1, 2]),)))
    assert batch.block_tables.tolist() == [[8]]
    assert state.tables[0].tolist() == [8] + [0] * (state.tables.shape[1] - 1)


def test_a_checksum_that_differs_is_noticed(state):
    rows = (RowStep(0, 0, 2, (8,), True),)
    good = table_checksum([(0, 2, [8])])
    state.update(StepPlan(0, rows, (new_row(0, [1, 2]),), checksum=good))
    with pytest.raises(AssertionError, match="the device's block tables are not the core's"):
        state.update(StepPlan(1, (RowStep(0, 2, 1, (), True),), checksum=good))
