"""Memory in huge pages, and what the system says of it."""

from __future__ import annotations

import sys

import pytest
import torch

from octavo.kernels.cpu import huge_pages as module
from octavo.kernels.cpu.huge_pages import Residence, huge_pages, huge_pages_enabled, residence

SMAPS = """\
{0:x}-{1:x} rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                6144 kB
Anonymous:          6144 kB
AnonHugePages:      4096 kB
FilePmdMapped:         0 kB
VmFlags: rd wr mr mw me ac sd
{1:x}-{2:x} r--s 00000000 fe:00 1234    /home/me/a-bc 12 file
Rss:                2048 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
FilePmdMapped:      2048 kB
{2:x}-{3:x} r--s 00000000 fe:00 1234    /elsewhere
Rss:                 999 kB
Anonymous:             0 kB
"""


@pytest.fixture
def smaps(tmp_path):
    """Mappings around a tensor: the first two hold parts of it."""
    tensor = torch.zeros(1 << 16, dtype=torch.uint8)
    begin = tensor.data_ptr()
    path = tmp_path / "smaps"
    path.write_text(SMAPS.format(begin - 4096, begin + 4096, begin + (1 << 16), begin + (1 << 17)))
    return tensor, path


def test_mappings_that_hold_a_byte_count(smaps):
    tensor, path = smaps
    assert residence([tensor], path) == Residence((6144 + 2048) << 10, (4096 + 2048) << 10, 2048 << 10)
    assert residence([tensor[:100]], path) == Residence(6144 << 10, 4096 << 10, 0)
    assert residence([tensor[:0]], path) == residence([], path) == Residence(0, 0, 0)


def test_a_system_that_does_not_tell(tmp_path):
    found = residence([torch.zeros(5)], tmp_path / "none")
    assert found == Residence(0, 0, 0)
    assert found.share == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_what_is_written_to_is_there():
    memory = huge_pages(8 << 20)
    memory.fill_(1)
    found = residence([memory])
    assert found.resident >= 8 << 20
    assert 0 <= found.huge <= found.resident


@pytest.mark.parametrize(
    ("text", "enabled"),
    [("always [madvise] never", True), ("[always] madvise never", True), ("always madvise [never]", False)],
)
def test_whether_there_are_any(tmp_path, text, enabled):
    path = tmp_path / "enabled"
    path.write_text(text + "\n")
    assert huge_pages_enabled(path) is enabled
    assert not huge_pages_enabled(tmp_path / "none")


def test_a_system_without_them(monkeypatch):
    """Neither the advice nor private mappings."""
    monkeypatch.delattr(module.mmap, "MADV_HUGEPAGE", raising=False)
    assert huge_pages(100).fill_(3).sum() == 300
    monkeypatch.delattr(module.mmap, "MAP_PRIVATE", raising=False)
    assert huge_pages(100).fill_(3).sum() == 300


def test_memory_that_there_is_not():
    with pytest.raises(MemoryError):
        huge_pages(1 << 60)
