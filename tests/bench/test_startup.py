"""How a start is timed: the child's messages, the medians, and what becomes of a child that fails."""

from __future__ import annotations

import itertools
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers_cli import make_chat_model
from octavo.bench.report import columns
from octavo.bench.startup import Startup, Startups, _follow, measure_startup, startup_columns, startup_results
from octavo.errors import ModelError, OctavoError, UsageError

PHASES = [
    *("python", "imports", "model_opened", "tokenizer_loaded", "kernels_loaded", "weights_loaded"),
    *("kv_cache_allocated", "ready", "first_token"),
]
"""Of a start on a CPU."""


def lines(*messages: dict[str, Any]) -> list[bytes]:
    return [json.dumps(message).encode() + b"\n" for message in messages]


def test_each_part_takes_from_the_end_of_the_one_before() -> None:
    times = iter([11.0, 13.5, 14.0, 99.0])
    messages = lines({"phase": "a"}, {"phase": "b"}, {"phase": "c"}, {"environment": {"x": 1}})
    assert _follow(messages, 10.0, lambda: next(times)) == ({"a": 1.0, "b": 2.5, "c": 0.5}, {"x": 1})


def test_a_child_that_ends_early_says_not_what_it_ran_on() -> None:
    assert _follow(lines({"phase": "a"}), 0.0, lambda: 1.0) == ({"a": 1.0}, None)


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (1, OctavoError)])
def test_the_childs_error_is_ours(code: int, kind: type[OctavoError]) -> None:
    with pytest.raises(OctavoError, match=r"^it is wrong$") as raised:
        _follow(lines({"phase": "a"}, {"error": "it is wrong", "exit_code": code}), 0.0, lambda: 1.0)
    assert type(raised.value) is kind
    assert raised.value.exit_code == code


def start(*seconds: float) -> Startup:
    return Startup(dict(zip(("imports", "ready", "first_token"), seconds, strict=True)))


def test_totals_and_medians() -> None:
    assert start(1.0, 2.0, 4.0).totals == {"until_ready": 3.0, "until_first_token": 7.0}
    result = Startups(start(9.0, 9.0, 9.0), (start(1.0, 5.0, 1.0), start(2.0, 1.0, 9.0), start(3.0, 3.0, 2.0)), {})
    medians = {"imports": 2.0, "ready": 3.0, "first_token": 2.0, "until_ready": 6.0, "until_first_token": 8.0}
    assert result.warm_median == medians
    assert startup_results(result)["warm_median"] == medians
    assert startup_results(result)["cold"]["until_first_token"] == 27.0
    assert [run["until_ready"] for run in startup_results(result)["warm"]] == [6.0, 3.0, 6.0]


def test_the_table() -> None:
    both = Startups(start(1.0, 2.0, 4.0), (start(0.5, 0.25, 0.125),), {})
    text = columns(startup_columns(both), 0).splitlines()
    assert [line.split("  ")[0] for line in text[1:]] == [
        *("imports", "ready", "first token", "until ready", "until first token")
    ]
    assert [cell.strip() for cell in text[0].split("  ")[-2:]] == ["no kernels cached", "cached (median of 1)"]
    assert text[-1].split()[-4:] == ["7.000", "s", "0.875", "s"]
    assert [len(line) for line in startup_columns(Startups(both.cold, (), {}))] == [2] * 6


def test_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache of kernels is neither used nor filled."""
    model = make_chat_model(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CC", sys.executable)  # fails at once where a compiler takes seconds
    seen: list[None] = []
    ticks = itertools.count()
    options = {"kv_cache_memory": 8 << 20, "max_num_seqs": 3}
    result = measure_startup(str(model), options, 2, lambda: seen.append(None), lambda: float(next(ticks)))
    assert [list(run.phases) for run in (result.cold, *result.warm)] == [PHASES, PHASES]
    assert set(result.cold.phases.values()) == {1.0}  # the clock was looked at once for each part
    assert result.environment["max_num_seqs"] == 3
    assert (result.environment["device"], result.environment["model"]) == ("cpu", str(model))
    assert len(seen) == 2
    assert not (tmp_path / "cache" / "octavo" / "native").exists()


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"has no config\.json") as raised:
        measure_startup(str(tmp_path), {}, 1)
    assert raised.value.exit_code == ModelError.exit_code


def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2; echo '  the last word' >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(OctavoError, match=r"ended with status 3: {3}the last word"):
        measure_startup("m", {}, 1)


def test_an_interrupt_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child would sleep for an hour after its first message."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho \'{"phase": "python"}\'\nexec sleep 3600\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    looks = itertools.count()

    def clock() -> float:
        if next(looks):
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        measure_startup("m", {}, 1, clock=clock)
