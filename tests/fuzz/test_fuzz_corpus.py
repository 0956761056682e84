"""Seeds, and inputs that the fuzzer found: each is read or refused in one line, and soon."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def test_there_is_a_corpus_for_each_parser() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)
    assert sum(path.stat().st_size for path in FILES) < 300_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_each_is_read_or_refused(path: Path) -> None:
    begin = time.monotonic()
    TARGETS[path.parent.name](path.read_bytes())
    assert time.monotonic() - begin < 10
