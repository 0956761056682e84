from __future__ import annotations

import pytest

from helpers_core import chain_hash
from octavo.core.blocks import BlockPool


def cached_chain(pool: BlockPool, length: int, name: bytes = b"") -> tuple[list[int], list[bytes]]:
    """Take ``length`` blocks and register them as a chain."""
    blocks, hashes, parent = pool.allocate(length), [], name
    for i, block in enumerate(blocks):
        parent = chain_hash(parent, [i])
        pool.register([block], [parent])
        hashes.append(parent)
    return blocks, hashes


def test_a_hash_covers_tokens_their_order_and_all_before() -> None:
    hashes = {
        chain_hash(b"", [1, 2]),
        chain_hash(b"", [2, 1]),
        chain_hash(b"s", [1, 2]),
        chain_hash(b"", [1, 2, 0]),
    }
    assert len(hashes) == 4
    assert chain_hash(b"", [1, 2]) == chain_hash(b"", [1, 2])
    assert len(chain_hash(b"", [2**40])) == 16


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(4, 16)
    assert [pool.blocks_for(n) for n in (0, 1, 16, 17, 32, 33)] == [0, 1, 1, 2, 2, 3]


def test_allocate_takes_all_or_nothing() -> None:
    pool = BlockPool(3, 4)
    pool.allocate(2)
    with pytest.raises(ValueError, match="2 blocks wanted, 1 free"):
        pool.allocate(2)
    assert pool.num_free == 1


def test_a_block_is_free_when_its_last_holder_has_let_go() -> None:
    pool = BlockPool(2, 4)
    blocks, _ = cached_chain(pool, 1)
    pool.acquire(blocks)
    assert pool.is_shared(blocks[0])
    pool.check([blocks, blocks])
    pool.release(blocks)
    assert pool.num_free == 1
    assert not pool.is_shared(blocks[0])
    pool.release(blocks)
    assert pool.num_free == 2
    pool.check([])


def test_a_double_release_is_an_error() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="released more often"):
        pool.release(blocks)


def test_lookup_finds_the_longest_known_beginning() -> None:
    pool = BlockPool(4, 4)
    blocks, hashes = cached_chain(pool, 3)
    other = chain_hash(hashes[0], [99])
    assert pool.lookup(hashes) == blocks
    assert pool.lookup([hashes[0], other, hashes[2]]) == blocks[:1]
    assert pool.lookup([other, *hashes]) == []


def test_lookup_finds_freed_blocks_until_they_are_reused() -> None:
    pool = BlockPool(3, 4)
    blocks, hashes = cached_chain(pool, 3)
    pool.release(blocks)
    assert pool.num_cached == 3
    assert pool.lookup(hashes) == blocks
    pool.allocate(1)
    assert pool.lookup(hashes) == blocks[:2], "the end of a chain must go before its head"
    pool.allocate(1)
    assert pool.lookup(hashes) == blocks[:1]


def test_the_chain_freed_first_is_evicted_first() -> None:
    pool = BlockPool(4, 4)
    old, old_hashes = cached_chain(pool, 2, b"old")
    new, new_hashes = cached_chain(pool, 2, b"new")
    pool.release(old)
    pool.release(new)
    pool.allocate(2)
    assert pool.lookup(old_hashes) == []
    assert pool.lookup(new_hashes) == new


def test_use_makes_a_chain_young_again() -> None:
    pool = BlockPool(4, 4)
    first, first_hashes = cached_chain(pool, 2, b"1")
    second, second_hashes = cached_chain(pool, 2, b"2")
    pool.release(first)
    pool.release(second)
    pool.acquire(first)
    pool.release(first)
    pool.allocate(2)
    assert pool.lookup(first_hashes) == first
    assert pool.lookup(second_hashes) == []


def test_blocks_without_a_hash_are_reused_before_all_others() -> None:
    pool = BlockPool(3, 4)
    chain, hashes = cached_chain(pool, 2)
    plain = pool.allocate(1)
    pool.release(chain)
    pool.release(plain)
    assert pool.allocate(1) == plain
    assert pool.lookup(hashes) == chain


def test_a_second_block_of_equal_content_stays_unknown() -> None:
    pool = BlockPool(2, 4)
    one, two = pool.allocate(2)
    pool.register([one], [b"h"])
    pool.register([two], [b"h"])
    assert pool.lookup([b"h"]) == [one]
    assert not pool.is_registered(two)
    pool.check([[one, two]])


def test_a_block_keeps_its_first_hash() -> None:
    pool = BlockPool(1, 4)
    (block,) = pool.allocate(1)
    pool.register([block], [b"h"])
    pool.register([block], [b"g"])
    assert pool.lookup([b"g"]) == []
    pool.check([[block]])


def test_without_caching_nothing_is_known() -> None:
    pool = BlockPool(2, 4, enable_caching=False)
    _, hashes = cached_chain(pool, 2)
    assert pool.lookup(hashes) == []
    assert pool.num_cached == 0


def test_forget_takes_blocks_out_of_the_cache_and_leaves_them_held() -> None:
    pool = BlockPool(3, 4)
    blocks, hashes = cached_chain(pool, 3)
    pool.forget([hashes[1], b"unknown"])
    assert pool.lookup(hashes) == blocks[:1]
    assert pool.num_free == 0
    pool.check([blocks])


def test_reset_forgets_holders_and_content() -> None:
    pool = BlockPool(3, 4)
    _, hashes = cached_chain(pool, 3)
    pool.reset()
    assert pool.lookup(hashes) == []
    assert (pool.num_free, pool.num_cached) == (3, 0)
    pool.check([])


def test_counts_of_free_blocks_ahead_of_time() -> None:
    pool = BlockPool(4, 4)
    held, _ = cached_chain(pool, 2, b"held")
    freed, _ = cached_chain(pool, 2, b"freed")
    pool.release(freed)
    pool.acquire(held[:1])
    assert pool.num_free_among(held + freed) == 2
    assert pool.num_freed_by(held) == 1
    assert pool.num_freed_by([*held, held[0]]) == 2


def test_check_finds_what_is_wrong() -> None:
    pool = BlockPool(3, 4)
    blocks = pool.allocate(2)
    pool.check([blocks])
    for holders in ([], [blocks, blocks], [blocks[:1]], [[*blocks, 2]]):
        with pytest.raises(AssertionError):
            pool.check(holders)


def test_blocks_of_no_one_in_an_empty_pool() -> None:
    pool = BlockPool(0, 4)
    assert pool.allocate(0) == []
    pool.check([])
