from __future__ import annotations

import msgspec
import pytest

from octavo.core.plan import RowStep, Sampled, StepPlan, StepResult, table_checksum


def test_values_are_frozen_and_compare_by_content() -> None:
    row = RowStep(0, 4, 2, (1,), True)
    assert row == RowStep(slot=0, start=4, num_tokens=2, new_blocks=(1,), samples=True)
    for value, name in ((row, "start"), (StepPlan(0, (row,)), "rows"), (Sampled("a", 1), "token_id")):
        with pytest.raises(AttributeError):
            setattr(value, name, 5)


def test_a_plan_can_be_sent_and_read_back() -> None:
    row = RowStep(0, 4, 2, (1,), True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=RowStep) == row


def test_totals_of_a_plan() -> None:
    plan = StepPlan(3, (RowStep(0, 4, 2, (), True), RowStep(1, 0, 5, (), False), RowStep(2, 9, 1, (), True)))
    assert (plan.num_tokens, plan.num_sampled) == (8, 2)


def test_results_do_not_share_their_defaults() -> None:
    assert StepResult(0, ()).errors is not StepResult(1, ()).errors


def test_a_checksum_depends_on_all_that_it_covers() -> None:
    tables = [(0, 5, [1, 2]), (1, 3, [4])]
    others = [
        [(0, 5, [1, 3]), (1, 3, [4])],
        [(0, 5, [2, 1]), (1, 3, [4])],
        [(0, 6, [1, 2]), (1, 3, [4])],
        [(2, 5, [1, 2]), (1, 3, [4])],
        [(0, 5, [1, 2])],
        [],
    ]
    sums = {table_checksum(other) for other in [tables, *others]}
    assert len(sums) == 1 + len(others)
    assert table_checksum(iter(tables)) == table_checksum(tables)
