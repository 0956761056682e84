"""The places of adapters on the device: held, idle, replaced."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from octavo.core.adapters import Adapter, AdapterPlaces

A, B, C = (Adapter(i, name) for i, name in enumerate("abc", 1))


def test_a_place_is_shared_and_kept_until_another_needs_it() -> None:
    places = AdapterPlaces(2)
    assert places.take(A) == (1, True)
    assert places.take(B) == (2, True)
    assert places.take(A) == (1, False)
    assert not places.has_room(C)
    places.release(B)
    assert places.has_room(C)
    assert places.take(B) == (2, False)  # it was still there
    places.release(B)
    assert places.take(C) == (2, True)
    assert not places.has_room(B)
    places.check([(A, 1), (A, 1), (C, 2)])


def test_the_one_let_go_first_is_replaced_first() -> None:
    places = AdapterPlaces(2)
    for adapter in (A, B):
        places.take(adapter)
    places.release(B)
    places.release(A)
    assert places.take(C) == (2, True)
    assert places.take(A) == (1, False)


def test_a_forgotten_adapter_is_copied_again() -> None:
    places = AdapterPlaces(1)
    places.take(A)
    places.forget(A.id)  # held: it stays
    assert places.take(A) == (1, False)
    places.release(A)
    places.release(A)
    places.forget(A.id)
    places.forget(A.id)
    assert places.take(A) == (1, True)


def test_without_places_there_is_no_room() -> None:
    assert not AdapterPlaces(0).has_room(A)


def test_salts_differ_and_are_no_text() -> None:
    assert len({adapter.salt for adapter in (A, B, C)}) == 3
    with pytest.raises(UnicodeDecodeError):
        A.salt.decode("utf-8", "surrogatepass")


@pytest.mark.parametrize("seed", range(10))
def test_random_holders(seed: int) -> None:
    """Against a model that knows only who holds what."""
    rng = random.Random(seed)
    places, held = AdapterPlaces(3), []
    adapters = [Adapter(i, str(i)) for i in range(1, 7)]
    for _ in range(500):
        adapter = rng.choice(adapters)
        if rng.random() < 0.5 and held:
            gone = held.pop(rng.randrange(len(held)))
            places.release(gone[0])
        elif rng.random() < 0.1:
            places.forget(adapter.id)
        elif places.has_room(adapter):
            held.append((adapter, places.take(adapter)[0]))
        else:
            others = Counter(other.id for other, _ in held)
            assert adapter.id not in others
            assert len(others) == 3
        places.check(held)
