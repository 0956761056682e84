"""The requests that run: their slots and their blocks. It does what the scheduler decides."""

from __future__ import annotations

from bisect import insort

from octavo.core.adapters import AdapterPlaces
from octavo.core.blocks import BlockPool
from octavo.core.in_flight import InFlight
from octavo.core.plan import AdapterLoad
from octavo.core.policy import Policy
from octavo.core.request import Request, Status


class Batch:
    """Requests with a slot, in the policy's order, which hold blocks for the tokens that they have computed.

    Attributes:
        running: the requests; this list is the same object for ever.
        adapters: which LoRA adapters are on the device, held by the requests.
        in_flight: the planned steps, and the slots and blocks that they keep from being free.
    """

    def __init__(self, pool: BlockPool, max_num_seqs: int, policy: Policy, max_loras: int = 0) -> None:
        self.running: list[Request] = []
        self.adapters = AdapterPlaces(max_loras)
        self.in_flight = InFlight(pool, max_num_seqs)
        self._pool = pool
        self._policy = policy

    def cached_blocks(self, request: Request) -> list[int]:
        """Blocks of the prefix cache that it can use. Its last token must be computed, to have logits."""
        if not (self._pool.enable_caching and request.uses_prefix_cache):
            return []
        usable = (len(request.tokens) - 1) // self._pool.block_size
        return self._pool.lookup(request.hashes(usable, self._pool.block_size))

    def enter(self, request: Request, cached: list[int]) -> AdapterLoad | None:
        """Give a waiting request a free slot, the ``cached`` blocks, and its adapter: what is to be loaded for that."""
        self._pool.acquire(cached)
        request.blocks = list(cached)
        request.num_registered = len(cached)
        request.num_computed = len(cached) * self._pool.block_size
        request.status = Status.RUNNING
        request.slot = self.in_flight.free_slots.pop()
        insort(self.running, request, key=self._policy)
        if request.adapter is None:
            return None
        request.adapter_number, new = self.adapters.take(request.adapter)
        return AdapterLoad(request.adapter_number, request.adapter.id) if new else None

    def new_blocks_for(self, request: Request, count: int) -> int:
        """Blocks that it must be given before ``count`` more tokens can be computed."""
        return -(-(request.num_computed + count) // self._pool.block_size) - len(request.blocks)

    def extend(self, request: Request, count: int, need: int, step: int) -> tuple[int, ...]:
        """Let it compute ``count`` tokens in ``step``. Returns ``need`` new blocks, which must be free."""
        new_blocks: tuple[int, ...] = ()
        if need:
            new_blocks = tuple(self._pool.allocate(need))
            request.blocks += new_blocks
            request.metrics.num_blocks = max(request.metrics.num_blocks, len(request.blocks))
        request.num_computed += count
        request.last_step = step
        if request.num_computed % self._pool.block_size < count:  # the end of a block was reached
            self.register_full_blocks(request)
        return new_blocks

    def register_full_blocks(self, request: Request) -> None:
        """Make known the blocks whose tokens are all known and computed, by now or by the steps in flight."""
        full = min(len(request.tokens), request.num_computed) // self._pool.block_size
        if full > request.num_registered and self._pool.enable_caching:
            new = slice(request.num_registered, full)
            self._pool.register(request.blocks[new], request.hashes(full, self._pool.block_size)[new])
            request.num_registered = full

    def leave(self, request: Request) -> None:
        """Take a request out; its slot and blocks are free once no step in flight uses them, its adapter's place
        at once.
        """
        self.running.remove(request)
        self.in_flight.free_after(request.last_step, request.slot, request.blocks)
        if request.adapter is not None:
            self.adapters.release(request.adapter)
        request.blocks, request.slot, request.adapter_number = [], -1, 0
        request.num_computed = request.num_registered = 0
