"""The parts of a benchmark: what is asked, what is summed up, what is written."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench.environment import commit, processor_name
from octavo.bench.latency import Timings
from octavo.bench.report import check_writable, summary_text, table, write_json
from octavo.bench.summary import Summary, percentile
from octavo.bench.throughput import Throughput
from octavo.bench.workload import LengthRange, Work, check_complete, random_work
from octavo.errors import OctavoError, UsageError
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput


@pytest.mark.parametrize(
    ("text", "low", "high", "back"), [("7", 7, 7, "7"), ("1:1", 1, 1, "1"), ("3:9", 3, 9, "3:9"), (" 5 ", 5, 5, "5")]
)
def test_lengths(text: str, low: int, high: int, back: str) -> None:
    assert LengthRange.parse(text) == LengthRange(low, high)
    assert str(LengthRange.parse(text)) == back


@pytest.mark.parametrize("text", ["", "0", "-1", "0:5", "5:4", "a", "1:2:3", "1:", ":2", "1.5", "9" * 30])
def test_bad_lengths(text: str) -> None:
    with pytest.raises(UsageError, match="is no length; accepted: N"):
        LengthRange.parse(text)


def test_work_is_what_was_asked_for_and_the_seed_decides() -> None:
    ranges = LengthRange(2, 4), LengthRange(5, 7)
    work = random_work(random.Random(1), 300, 11, *ranges)
    assert {len(w.token_ids) for w in work} == {2, 3, 4}
    assert {w.output_len for w in work} == {5, 6, 7}
    assert {i for w in work for i in w.token_ids} == set(range(11))
    assert work == random_work(random.Random(1), 300, 11, *ranges)
    assert work != random_work(random.Random(2), 300, 11, *ranges)
    assert all(w.params.max_tokens == w.output_len and w.params.ignore_eos for w in work)


def test_a_request_that_ended_early_is_an_error() -> None:
    ended = CompletionOutput(0, token_ids=[1, 2], finish_reason="error", stop_reason="no finite maximum")
    output = RequestOutput("r", None, [1], [ended], True, RequestMetrics())
    check_complete(output, Work([1], 2))
    with pytest.raises(OctavoError, match="ended after 2 of 3 tokens: no finite maximum"):
        check_complete(output, Work([1], 3))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert percentile(sorted(values), q) == pytest.approx(np.quantile(values, q))


def test_a_summary() -> None:
    values = [float(i) for i in range(1, 101)]
    expected = [100, np.mean(values), np.median(values), *np.quantile(values, [0.9, 0.95, 0.99])]
    summary = Summary.of(random.Random(0).sample(values, 100))
    assert summary is not None
    assert [summary.count, summary.mean, summary.median, summary.p90, summary.p95, summary.p99] == pytest.approx(
        expected
    )
    assert Summary.of([]) is None
    text = summary_text(Summary(1, 0.004, 0.001, 0.002, 0.0025, 0.003))
    assert text == "median 1.00 ms, p90 2.00 ms, p99 3.00 ms, mean 4.00 ms"
    assert summary_text(None) == "none"


def test_timings_of_a_request() -> None:
    timings = Timings()
    timings.add(10.0, [10.5, 10.75, 11.75])
    timings.add(20.0, [21.0])
    assert (timings.first, timings.between, timings.whole) == ([0.5, 1.0], [0.25, 1.0], [1.75, 1.0])


def test_rates() -> None:
    result = Throughput(
        requests=6, prompt_tokens=100, output_tokens=40, seconds=4.0, steps=9, step_time=None, preemptions=0
    )
    assert result.rates == {
        "prompt_tokens_per_second": 25.0,
        "output_tokens_per_second": 10.0,
        "total_tokens_per_second": 35.0,
        "requests_per_second": 1.5,
    }


def test_a_table_is_aligned() -> None:
    assert table([("a", "1"), ("long", "2")]) == "a     1\nlong  2"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    mask = os.umask(0o027)
    try:
        write_json(path, {"a": 2})
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(mask)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OctavoError, match=r"cannot write to .*report.json': No space left"):
        write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_report_without_a_place_is_told_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    with pytest.raises(UsageError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OctavoError, match="no such folder"):
        check_writable(tmp_path / "none" / "new.json")


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_a_file(tmp_path: Path) -> None:
    tracked, other = tmp_path / "tracked.py", tmp_path / "other.py"
    tracked.write_text("1")
    other.write_text("1")
    assert commit(tracked) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "tracked.py")
    assert commit(tracked) is None
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tracked) == head
    assert commit(other) is None
    tracked.write_text("2")
    assert commit(tracked) == f"{head}-dirty"


def test_the_processor_has_a_name() -> None:
    assert processor_name()
