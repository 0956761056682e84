"""The pool of KV blocks: who holds which, and which may be reused for an equal prompt beginning.

The cache is paged (PagedAttention, arXiv:2309.06180): a block holds the keys and values of ``block_size``
consecutive tokens of one request, in all layers. Here a block is only a number. A block is

- held, by one request or (once full and registered) by several: its reference count says by how many;
- free and empty: nothing of use in it;
- free and cached: no one holds it, but its content is known by a hash and may be taken up again, until the
  block is needed for something else. Those freed first are reused first (LRU).

A block's hash covers its own tokens and the hash of the block before it, so that equal hashes mean equal
beginnings from token 0 on. The hash is 128 bits of XXH3: no accident makes two of them equal, but whoever
wants to keep tenants apart gives each a ``salt``.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import xxhash


def chain_hashes(parent: bytes, token_ids: array[int], block_size: int) -> list[bytes]:
    """The hashes (16 bytes each) of consecutive full blocks.

    Args:
        parent: the hash of the block before them, or the salt if they are the first.
        token_ids: int64, a multiple of ``block_size``.
    """
    hashes, content = [], token_ids.tobytes()
    width = block_size * token_ids.itemsize
    for start in range(0, len(content), width):
        parent = xxhash.xxh3_128_digest(parent + content[start : start + width])
        hashes.append(parent)
    return hashes


class BlockPool:
    """Blocks with reference counts, a prefix cache and LRU eviction. All operations are O(blocks named)."""

    def __init__(self, num_blocks: int, block_size: int, enable_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.reset()

    def reset(self) -> None:
        """Forget all holders and all content: every block is free and empty."""
        num_blocks = self.num_blocks
        self._refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # The next to be reused comes first. A dictionary lets a block leave from the middle in O(1).
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that no one holds, cached or not."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks whose content is known by a hash, held or not."""
        return len(self._block_of)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks ``num_tokens`` tokens take."""
        return -(-num_tokens // self.block_size)

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks that hold the longest known beginning of the chain ``hashes``. Takes no reference."""
        found = []
        for hash_ in hashes:
            block = self._block_of.get(hash_)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` no one holds, so that acquiring them lowers `num_free`."""
        return sum(self._refs[block] == 0 for block in blocks)

    def num_freed_by(self, blocks: Iterable[int]) -> int:
        """How many blocks would become free if one reference were released for each entry of ``blocks``."""
        return sum(self._refs[block] == count for block, count in Counter(blocks).items())

    def acquire(self, blocks: Iterable[int]) -> None:
        """Take one reference to each of ``blocks``, which come from `lookup`."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._free[block]
            self._refs[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for new content, forgetting the least recently freed cached ones if need be.

        Raises:
            ValueError: fewer than ``count`` are free; nothing was taken.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            if self._hash_of[block] is not None:
                self._forget(block)
            self._refs[block] = 1
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each of a request's ``blocks``, which are in the order of its tokens.

        The last block is freed first, so that of one beginning the end is evicted before the start: a chain
        is of no use without its head. Blocks without a hash are of no use at all and are reused before all
        others.
        """
        refs, free = self._refs, self._free
        for block in reversed(blocks):
            if refs[block] <= 0:
                raise ValueError(f"block {block} is released more often than it was taken")
            refs[block] -= 1
            if refs[block] == 0:
                free[block] = None
                if self._hash_of[block] is None:
                    free.move_to_end(block, last=False)

    def register(self, blocks: Iterable[int], hashes: Iterable[bytes]) -> None:
        """Make full, held blocks known by their hashes. Where another one is already, it stays the known one."""
        if not self.enable_caching:
            return
        hash_of, block_of = self._hash_of, self._block_of
        for block, hash_ in zip(blocks, hashes, strict=True):
            if hash_of[block] is None and hash_ not in block_of:
                hash_of[block] = hash_
                block_of[hash_] = block

    def is_registered(self, block: int) -> bool:
        return self._hash_of[block] is not None

    def is_shared(self, block: int) -> bool:
        return self._refs[block] > 1

    def forget(self, hashes: Iterable[bytes]) -> None:
        """Take the blocks known by ``hashes`` out of the prefix cache; who holds one keeps it."""
        for hash_ in hashes:
            block = self._block_of.get(hash_)
            if block is not None:
                self._forget(block)

    def forget_all(self) -> None:
        """Empty the prefix cache; who holds a block keeps it."""
        self.forget(list(self._block_of))

    def _forget(self, block: int) -> None:
        hash_ = self._hash_of[block]
        if hash_ is not None:
            del self._block_of[hash_]
            self._hash_of[block] = None

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Raise ``AssertionError`` unless the pool is consistent and its counts are those of ``holders``.

        Each holder is the blocks that one request holds. Costs O(num_blocks): for tests and debug mode.
        """
        held = Counter(block for blocks in holders for block in blocks)
        for block, refs in enumerate(self._refs):
            assert refs == held[block], f"block {block}: {refs} references, {held[block]} holders"
            assert (refs == 0) == (block in self._free), (
                f"block {block}: {refs} references, free: {block in self._free}"
            )
        assert len(self._free) + sum(r > 0 for r in self._refs) == self.num_blocks, "a block is lost"
        for hash_, block in self._block_of.items():
            assert self._hash_of[block] == hash_, f"block {block} is known by a hash that is not its own"
        known = sum(h is not None for h in self._hash_of)
        assert known == len(self._block_of), f"{known} blocks have a hash, {len(self._block_of)} are known by one"
