import numpy as np
import pytest

from octavo.kernels.reference.random_numbers import philox4x32, uniform


def words(*values):
    return tuple(np.array([value], np.uint64) for value in values)


# The known answers that are published with the generator (Random123, kat_vectors).
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(counter, key, expected):
    assert tuple(int(x[0]) for x in philox4x32(words(*counter), words(*key))) == expected


@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_numbers_are_uniform_and_uncorrelated_along_seeds_and_positions(along):
    count = np.arange(100_000, dtype=np.uint64)
    fixed = np.full_like(count, 7)
    numbers = uniform(count, fixed) if along == "seeds" else uniform(fixed, count)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    observed = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((observed - 1000) ** 2 / 1000).sum() < 149  # the 99.9 % point of chi-square with 99 degrees
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.0105  # 3.3 standard errors


def test_all_64_bits_of_the_seed_count():
    seeds = np.array([1, 1 + 2**32, 1 + 2**63], np.uint64)
    assert len(set(uniform(seeds, np.zeros(3, np.uint64)))) == 3
