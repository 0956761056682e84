"""Reading the input line by line, and appending to the output."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.batch.input_file import count_lines, open_input, read_lines
from octavo.batch.lines import DUPLICATE, INVALID_LINE, encode_line
from octavo.batch.output_file import OutputFile
from octavo.errors import OctavoError, UsageError
from octavo.openai.errors import ErrorBody, FieldError, failure, refusal


def line(number: int, custom_id: str | None, code: str | None = None) -> bytes:
    body: ErrorBody = failure("x") if code is None else refusal(FieldError("no", None, code))
    return encode_line(number, custom_id, "req", body, 400)


@given(st.lists(st.binary(max_size=12).filter(lambda b: b"\n" not in b), max_size=8), st.booleans(), st.integers(1, 12))
def test_lines_are_numbered_and_long_ones_left_out(lines: list[bytes], ended: bool, limit: int) -> None:
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    found = list(read_lines(io.BytesIO(data), limit))
    assert [number for number, _ in found] == list(range(1, len(expected) + 1))
    for (number, content), whole in zip(found, expected, strict=True):
        kept = whole.removeprefix(b"\xef\xbb\xbf") if number == 1 else whole
        assert content == (kept.strip() if len(whole) <= limit else None)
    assert count_lines(io.BytesIO(data)) == len(expected)


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert list(read_lines(io.BytesIO(b"\xef\xbb\xbf{}\r\n{}"))) == [(1, b"{}"), (2, b"{}")]


def test_counting_goes_back_to_the_start_and_leaves_pipes_alone() -> None:
    file = io.BytesIO(b"a\nb")
    assert (count_lines(file), file.read()) == (2, b"a\nb")
    read_end, write_end = os.pipe()
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert count_lines(pipe) is None


def test_unreadable_input(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=r"cannot read .*/none': No such file"):
        open_input(tmp_path / "none")
    with pytest.raises(OctavoError, match="Is a directory"):
        open_input(tmp_path)


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    lines = [line(1, "a"), line(2, None, INVALID_LINE), line(3, "a", DUPLICATE), line(5, "é\n")]
    with OutputFile(path) as out:
        out.begin()
        for one in lines:
            out.append(one)
    assert path.read_bytes() == b"".join(lines)
    with OutputFile(path) as out:
        out.begin()
        assert out.done.custom_ids == {"a", "é\n"}
        assert out.done.line_ids == {"batch_req_2", "batch_req_3"}
        out.append(line(9, "b"))
    assert path.read_bytes() == b"".join(lines) + line(9, "b")
    with OutputFile(path, overwrite=True) as out:
        out.begin()
        assert out.done.custom_ids == set()
    assert path.read_bytes() == b""


def test_a_line_cut_anywhere_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out"
    first, second = line(1, "a"), line(2, "b")
    for cut in range(len(second)):
        path.write_bytes(first + second[:cut])
        with OutputFile(path) as out:
            out.begin()
            assert out.done.custom_ids == {"a"}
        assert path.read_bytes() == first
    for cut in range(len(first)):
        path.write_bytes(first[:cut])
        with OutputFile(path) as out:
            out.begin()
            assert out.done.custom_ids == set()
        assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "content",
    [b"my thesis", b"my thesis\n", b"{}\n", b'{"id": "batch_req_1"}\n', line(1, "a") + b"other\n", b"\0" * 99],
)
def test_other_peoples_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"is not an answer of a batch; give another file, or --overwrite"):
        OutputFile(path)
    assert path.read_bytes() == content


def test_two_batches_do_not_share_an_output(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out") as out:
        out.begin()
        with pytest.raises(UsageError, match="another batch is writing"):
            OutputFile(tmp_path / "out", overwrite=True)
        out.append(line(1, "a"))
    with OutputFile(tmp_path / "out") as out:
        out.begin()
        assert out.done.custom_ids == {"a"}


def test_a_write_that_fails_amid_a_line_leaves_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OutputFile(tmp_path / "out") as out:
        out.begin()
        out.append(line(1, "a"))
        write, calls = os.write, 0

        def fill_up(fd: int, data: bytes) -> int:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise OSError(28, "No space left on device")
            return write(fd, data[:10])

        monkeypatch.setattr(os, "write", fill_up)
        with pytest.raises(OctavoError, match=r"cannot write to .*: No space left on device"):
            out.append(line(2, "b"))
        assert (tmp_path / "out").read_bytes() == line(1, "a")
        monkeypatch.setattr(os, "write", write)
        out.append(line(3, "c"))
    assert (tmp_path / "out").read_bytes() == line(1, "a") + line(3, "c")


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        OutputFile(tmp_path)
    with pytest.raises(OctavoError, match="No such file or directory"):
        OutputFile(tmp_path / "none" / "out")
    with OutputFile(Path("/dev/full")) as out, pytest.raises(OctavoError, match="No space left on device"):
        out.append(b"x\n")
