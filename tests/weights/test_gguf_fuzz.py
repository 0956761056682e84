"""Thousands of damaged GGUF files: each is read or refused with ``ModelError``, fast and in little memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

from helpers_gguf import write_llama
from octavo.errors import ModelError
from octavo.weights.gguf import GGUFCheckpoint

CASES = 3000
SEED = 20240607
EXTREMES = [0, 1, 2, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1]


def damage(data: bytearray, header: int, rng: random.Random) -> bytearray:
    """One to four mutations, most of them in the header."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(header)
        match rng.randrange(6):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                width = rng.choice([4, 8])
                data[at : at + width] = (rng.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, "little")
            case 3:
                del data[at : at + rng.randint(1, 32)]
            case 4:
                source = rng.randrange(header)
                data[at:at] = data[source : source + rng.randint(1, 64)]
            case 5 if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
                data += b"\0"
                header = min(header, len(data))
    return data


def open_and_read(path: Path) -> bool:
    """Whether the file was usable. Reads the smaller tensors too."""
    try:
        for tensor in GGUFCheckpoint.open(path).tensors():
            if tensor.nbytes < 1000:
                assert tuple(tensor.read(torch.float32).shape) == tensor.shape
    except ModelError:
        return False
    return True


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    path, _ = write_llama(tmp_path / "model.gguf", "Q8_0", rope__scaling__type="linear", rope__scaling__factor=2.0)
    whole = path.read_bytes()
    header = min(info.offset for info in GGUFCheckpoint.open(path).file.tensors.values())
    target, usable, slowest = tmp_path / "damaged.gguf", 0, 0.0
    tracemalloc.start()
    for case in range(CASES):
        target.write_bytes(damage(bytearray(whole), header, rng))
        begin = time.process_time()
        try:
            usable += open_and_read(target)
        except Exception as error:
            pytest.fail(f"seed {SEED}, case {case}: {error!r}")
        slowest = max(slowest, time.process_time() - begin)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert CASES // 50 < usable < CASES  # both outcomes were met
    assert slowest < 2
    assert peak < 32 << 20
