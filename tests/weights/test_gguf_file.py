"""Reading of GGUF headers: what the gguf package wrote is found, and what lies is refused in one line."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from helpers_gguf import (
    preamble,
    string,
    tensor_entry,
    u32,
    u64,
    with_keys,
    with_tensors,
    write_gguf,
    write_llama,
)
from octavo.errors import ModelError
from octavo.weights import gguf_cursor
from octavo.weights.gguf_file import GGUFFile, open_gguf

HUGE = (1 << 60, (1 << 64) - 1, (1 << 63) + 1, 1 << 40)


def refuse(path: Path, data: bytes) -> str:
    """Write ``data`` and return the one line with which it is refused, having used little memory and time."""
    path.write_bytes(data)
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(ModelError) as caught:
        GGUFFile(path)
    seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2
    assert peak < 16 << 20
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < len(str(path)) + 400
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_what_was_written_is_read(path: Path) -> None:
    metadata: dict[str, Any] = {
        "a.string": "größer ∞",
        "an.empty.string": "",
        "a.bool": True,
        "a.uint32": 2**32 - 1,
        "a.float": 0.5,
        "strings": ["a", "", "ß", "<|im_end|>"],
        "integers": [1, -2, 3],
        "floats": [0.5, -1.0],
        "bools": [True, False],
    }
    arrays = {
        "x": (np.arange(96, dtype=np.float32).reshape(3, 32), "F32"),
        "y": (np.ones((2, 64), np.float32), "Q8_0"),
    }
    file = GGUFFile(write_gguf(path, metadata, arrays))
    assert file.metadata == {"general.architecture": "llama", **metadata}
    assert [type(file.metadata[key]) for key in ("a.bool", "a.uint32", "a.float")] == [bool, int, float]
    x, y = file.tensors["x"], file.tensors["y"]
    assert (x.shape, x.type.name, x.nbytes) == ((3, 32), "F32", 384)
    assert (y.shape, y.type.name, y.nbytes) == ((2, 64), "Q8_0", 4 * 34)
    np.testing.assert_array_equal(file.data(x).view(np.float32).reshape(3, 32), arrays["x"][0])
    assert not file.data(x).flags.writeable


@pytest.mark.parametrize(
    ("kind", "code", "number"),
    [
        (0, "B", 255), (1, "b", -128), (2, "H", 65535), (3, "h", -32768), (4, "I", 2**32 - 1),
        (5, "i", -(2**31)), (6, "f", 0.25), (7, "?", True),
        (10, "Q", 2**64 - 1), (11, "q", -(2**63)), (12, "d", 1e300),
    ],
)  # fmt: skip
def test_each_type_of_number_alone_and_in_a_list(path: Path, kind: int, code: str, number: float) -> None:
    packed = struct.pack("<" + code, number)
    alone = string("one") + u32(kind) + packed
    listed = string("three") + u32(9) + u32(kind) + u64(3) + packed * 3
    nested = string("nested") + u32(9) + u32(9) + u64(2) + (u32(kind) + u64(1) + packed) * 2
    path.write_bytes(with_keys(alone, listed, nested))
    expected = {"one": number, "three": [number] * 3, "nested": [[number], [number]]}
    assert GGUFFile(path).metadata == expected
    assert type(GGUFFile(path).metadata["one"]) is type(number)


def test_tensors_lie_where_the_gguf_package_finds_them(path: Path) -> None:
    write_llama(path, "Q4_1")
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
        np.testing.assert_array_equal(ours.data(info), tensor.data.view(np.uint8).reshape(-1))


def test_version_2_and_another_alignment(path: Path) -> None:
    header = preamble(1, 1, version=2) + string("general.alignment") + u32(4) + u32(256) + tensor_entry("x", (2,))
    path.write_bytes(header + bytes(-len(header) % 256) + struct.pack("<2f", 1, 2))
    file = GGUFFile(path)
    assert file.tensors["x"].offset % 256 == 0
    np.testing.assert_array_equal(file.data(file.tensors["x"]).view(np.float32), [1, 2])


def test_large_vocabulary_is_read_fast(path: Path) -> None:
    tokens = [f"token{i}" for i in range(150_000)]
    merges = [f"to ken{i}" for i in range(150_000)]
    metadata = {"tokens": tokens, "merges": merges, "scores": [0.5] * 150_000, "types": [1] * 150_000}
    write_gguf(path, metadata, {})
    begin = time.process_time()
    file = GGUFFile(path)
    assert time.process_time() - begin < 1.5
    assert file.metadata["tokens"] == tokens
    assert file.metadata["merges"] == merges


# What is not a file, or not GGUF


def test_a_file_is_read_once_while_somebody_has_it_and_again_when_it_has_changed(path: Path) -> None:
    write_gguf(path, {"a.key": "text"}, {"x": (np.ones((1, 32), np.float32), "F32")})
    first = open_gguf(path)
    assert open_gguf(str(path)) is first
    metadata = first.metadata
    os.utime(path, (1, 1))
    second = open_gguf(path)
    assert second is not first
    assert second.metadata == metadata
    gone = weakref.ref(second)
    del second
    assert gone() is None


def test_opening_what_is_no_file_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ModelError, match="a GGUF file was expected"):
            open_gguf(path)


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        ".": "folder",
        "none": "No such file",
        "pipe": "not a regular file",
        "x\0y": "null",
    }.items():
        with pytest.raises(ModelError, match=words):
            GGUFFile(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"G", "expected b'GGUF'"),
        (b"GGUF", "ends at byte 4"),
        (b"PK\x03\x04" + bytes(60), "expected b'GGUF'"),
        (preamble(0, 0, version=1) + bytes(64), "version is 1; accepted: 2 and 3"),
        (preamble(0, 0, version=99) + bytes(64), "version is 99; accepted"),
        (preamble(0, 0, version=0) + bytes(64), "version is 0; accepted"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian; accepted: little-endian"),
    ],
)
def test_not_gguf(path: Path, data: bytes, words: str) -> None:
    assert words in refuse(path, data)


# Metadata that lie


@pytest.mark.parametrize("huge", [*HUGE, 1 << 17])
def test_counts_beyond_reason(path: Path, huge: int) -> None:
    assert "tensors; at most 65536" in refuse(path, preamble(huge, 0) + bytes(64))
    assert "metadata keys; at most 65536" in refuse(path, preamble(0, huge) + bytes(64))


@pytest.mark.parametrize("huge", HUGE)
def test_lengths_beyond_the_file(path: Path, huge: int) -> None:
    assert "a string claims" in refuse(path, with_keys(string("k", length=huge)))
    assert "a string claims" in refuse(path, with_keys(string("k") + u32(8) + string("v", length=huge)))
    for kind in (0, 4, 7, 8, 9, 12):
        assert "array items, and there is room" in refuse(path, with_keys(string("k") + u32(9) + u32(kind) + u64(huge)))
    listed = string("k") + u32(9) + u32(8) + u64(2) + string("a") + string("b", length=huge)
    assert "a string claims" in refuse(path, with_keys(listed))


def test_too_many_items_for_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_cursor, "MAX_ITEMS", 100)
    cursor = gguf_cursor.Cursor(memoryview(u32(0) + u64(60) + bytes(60)), "x")
    assert cursor.value(9) == [0] * 60
    two = memoryview((u32(0) + u64(60) + bytes(60)) * 2)
    cursor = gguf_cursor.Cursor(two, "x")
    cursor.value(9)
    with pytest.raises(ModelError, match="more than 100 array items"):
        cursor.value(9)


def test_header_longer_than_the_limit(path: Path) -> None:
    """A sparse file of a gigabyte, whose keys never end."""
    with path.open("wb") as file:
        file.write(preamble(0, 5000))
        for i in range(20):
            file.write(string(f"key{i}") + u32(8) + u64(15 << 20))
            file.seek(15 << 20, os.SEEK_CUR)
        file.truncate(1 << 30)
    with pytest.raises(ModelError, match=r"at most \d+ were expected|longer than"):
        GGUFFile(path)


def test_long_strings_are_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.write(preamble(0, 1) + string("k", length=1 << 25))
        file.truncate(1 << 26)
    with pytest.raises(ModelError, match="a string claims 33554432 bytes; at most 16777216"):
        GGUFFile(path)


@pytest.mark.parametrize("kind", [13, 99, 2**32 - 1])
def test_unknown_value_types(path: Path, kind: int) -> None:
    assert f"value type {kind} is unknown" in refuse(path, with_keys(string("k") + u32(kind) + bytes(8)))
    for count in (0, 3):
        array = string("k") + u32(9) + u32(kind) + u64(count) + bytes(64)
        assert f"value type {kind} is unknown" in refuse(path, with_keys(array))


@pytest.mark.parametrize("depth", [6, 100, 100_000])
def test_arrays_nested_too_deep(path: Path, depth: int) -> None:
    nested = string("k") + u32(9) + (u32(9) + u64(1)) * depth + u32(0) + u64(1) + b"\1"
    assert "nested deeper than 4" in refuse(path, with_keys(nested))


def test_names_that_are_there_twice(path: Path) -> None:
    assert "'k' is there twice" in refuse(path, with_keys(*[string("k") + u32(0) + b"\1"] * 2))
    entries = [tensor_entry("x", (8,)), tensor_entry("x", (8,), offset=32)]
    assert "'x' is there twice" in refuse(path, with_tensors(*entries))


def test_strings_that_are_not_utf8(path: Path) -> None:
    assert "is not UTF-8" in refuse(path, with_keys(string(b"\xff\xfe") + u32(0) + b"\1"))
    assert "is not UTF-8" in refuse(path, with_keys(string("k") + u32(8) + string(b"\xc3")))
    assert "is not UTF-8" in refuse(path, with_keys(string("k") + u32(9) + u32(8) + u64(1) + string(b"\x80")))
    assert "is not UTF-8" in refuse(path, with_tensors(tensor_entry("x", (8,)).replace(b"x", b"\xff", 1)))


@pytest.mark.parametrize("value", [u32(4) + u32(number) for number in (0, 1, 4, 33, 1 << 30)] + [u32(8) + string("32")])
def test_alignments_that_are_none(path: Path, value: bytes) -> None:
    assert "expected a power of two" in refuse(path, with_keys(string("general.alignment") + value))


def test_one_part_of_many(path: Path) -> None:
    message = refuse(path, with_keys(string("split.count") + u32(2) + struct.pack("<H", 3)))
    assert "one of 3 parts" in message
    path.write_bytes(with_keys(string("split.count") + u32(2) + struct.pack("<H", 1)))
    assert GGUFFile(path).metadata == {"split.count": 1}


# Tensors that lie


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (tensor_entry("x", (8,), num_dimensions=0), "0 dimensions; expected 1 to 4"),
        (tensor_entry("x", (8,) * 5), "5 dimensions; expected 1 to 4"),
        (tensor_entry("x", (8,), num_dimensions=2**32 - 1), "4294967295 dimensions"),
        (tensor_entry("x", (8, 0)), "expected no zero"),
        (tensor_entry("x", (8,), kind=77), "of type number 77; accepted: F32"),
        (tensor_entry("x", (8,), kind=4), "of type number 4; accepted: F32"),
        (tensor_entry("x", (256,), kind=9), "of type Q8_1; accepted: F32"),
        (tensor_entry("x", (8,), offset=4), "expected a multiple of 32"),
        (tensor_entry("x", (33,), kind=2), "rows of 33 weights; expected a multiple of 32"),
        (tensor_entry("x", (32,), kind=12), "rows of 32 weights; expected a multiple of 256"),
        (tensor_entry("x", (8,), offset=1 << 20), "it is cut off"),
        (tensor_entry("x", (8,), offset=(1 << 64) - 32), "it is cut off"),
        (tensor_entry("x", (1 << 60,)), "it is cut off"),
        (tensor_entry("x", (1 << 32, 1 << 32)), "it is cut off"),
        (tensor_entry("x", (1 << 62, 4, 1 << 62, 4)), "it is cut off"),
        (tensor_entry("x", (1025,)), "it is cut off"),
        (tensor_entry("x" * 10_000, (0,)), "expected no zero"),
        (tensor_entry("line\nbreak\x1b[31m", (0,)), "expected no zero"),
    ],
)
def test_tensors_that_cannot_be(path: Path, entry: bytes, words: str) -> None:
    assert words in refuse(path, with_tensors(entry))


def test_tensors_over_each_other(path: Path) -> None:
    entries = [tensor_entry("x", (64,)), tensor_entry("y", (8,), offset=224)]
    assert "'y'" in refuse(path, with_tensors(*entries))
    path.write_bytes(with_tensors(tensor_entry("x", (64,), offset=32), tensor_entry("y", (8,))))
    assert [info.offset % 32 for info in GGUFFile(path).tensors.values()] == [0, 0]


def test_a_file_cut_off_anywhere(path: Path) -> None:
    data = write_llama(path, "Q8_0")[0].read_bytes()
    end = max(info.offset + info.nbytes for info in GGUFFile(path).tensors.values())
    header_end = min(info.offset for info in GGUFFile(path).tensors.values())
    for size in [*range(1, header_end, 13), *range(header_end, end, 5003), end - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ModelError):
            GGUFFile(path)
    path.write_bytes(data[:end])
    GGUFFile(path)


def test_importing_needs_no_torch() -> None:
    code = "import sys, octavo.weights.gguf, octavo.ggml.block_types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
