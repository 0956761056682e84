"""Tiles cut on the host and on the device."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from octavo.kernels.forward_batch import DeviceRows
from octavo.kernels.triton.attention_tiles import DeviceTiles, HostTiles


def both(lens: list[tuple[int, int]], spare_rows: int = 0, spare_tokens: int = 0) -> tuple[HostTiles, DeviceTiles]:
    queries, contexts = (np.array(x, dtype=np.int32) for x in zip(*lens, strict=True))
    starts = [0, *np.cumsum(queries).tolist()]
    rows = DeviceRows(
        torch.tensor(starts + starts[-1:] * spare_rows, dtype=torch.int32),
        torch.tensor([*contexts.tolist(), *[0] * spare_rows], dtype=torch.int32),
        torch.arange(len(lens) + spare_rows, dtype=torch.int32),
    )
    return HostTiles(queries, contexts, torch.device("cpu")), DeviceTiles(rows, starts[-1] + spare_tokens)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["all", "several", "fresh", "cached"])
def test_the_device_cuts_as_the_host_does(seed, kind):
    print("seed", seed)
    rng = random.Random(seed)
    lens = []
    for _ in range(rng.randint(1, 12)):
        queries = rng.choice([1, 1, 2, 5, 16, 17, 64])
        lens.append((queries, queries + rng.choice([0, 0, 1, 30])))
    host, device = both(lens, spare_rows=rng.randint(0, 5), spare_tokens=rng.randint(0, 40))
    size = rng.choice([1, 4, 16])
    expected, found = host.cut(size, kind), device.cut(size, kind)
    count = 0 if expected is None else len(expected)
    assert sorted(found[:count].tolist()) == sorted([] if expected is None else expected.tolist())
    assert (found[count:, 0] == -1).all()
    position = [lens[r][1] - lens[r][0] + first for r, first in found[:count].tolist()]
    assert position == sorted(position, reverse=True)


def test_the_device_leaves_no_queries_out():
    with pytest.raises(ValueError, match="leaves no queries out"):
        both([(3, 3)])[1].cut(4, "fresh", whole=2)
