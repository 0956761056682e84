"""The numbers of a cache in fewer bits."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.forward_batch import FP8, KV_DTYPES, KVLayer
from octavo.kernels.reference.kv_numbers import gather, quantize, store
from octavo.kernels.reference.workspace import Workspace

ERROR = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11, FP8: 2**-4}
"""Of a number, at most."""


@pytest.mark.parametrize("name", list(KV_DTYPES))
def test_what_is_stored_comes_back(name):
    torch.manual_seed(0)
    kv = KVLayer.zeros(5, 4, 2, 16, KV_DTYPES[name])
    keys, values = torch.randn(2, 3, 2, 16).unbind()
    places = [(4, 1), (0, 3), (2, 2)]  # block, offset of each token
    rows = torch.tensor([(block * 2 + head) * 4 + offset for block, offset in places for head in range(2)])
    store(kv, rows, keys, values)
    for index, new in enumerate((keys, values)):
        found = gather(kv, index, torch.arange(10), torch.float32, Workspace()).view(5, 2, 4, 16)
        for token, (block, offset) in enumerate(places):
            bound = (
                new[token].abs().amax(-1, keepdim=True) / 127 / 2
                if name == "int8"
                else new[token].abs() * ERROR[KV_DTYPES[name]] + 2**-10 * (name == "fp8")
            )
            assert ((found[block, :, offset] - new[token]).abs() <= bound * 1.001).all()
        assert int((found != 0).any(-1).sum()) == 6  # nothing else was touched


def test_float8_is_bounded_and_int8_of_nothing_is_nothing():
    kv = KVLayer.zeros(1, 4, 1, 16, FP8)
    store(kv, torch.tensor([0]), torch.full((1, 1, 16), 1e6), torch.full((1, 1, 16), -1e6))
    assert kv.keys.float().max() == 448
    assert kv.values.float().min() == -448
    numbers, scales = quantize(torch.zeros(2, 16))
    assert not numbers.any()
    assert not scales.any()


def test_bytes():
    assert KVLayer.zeros(3, 4, 2, 16, torch.bfloat16).nbytes == 3 * 4 * 2 * 16 * 2 * 2
    assert KVLayer.zeros(3, 4, 2, 16, torch.int8).nbytes == 3 * 4 * 2 * (16 + 4) * 2
