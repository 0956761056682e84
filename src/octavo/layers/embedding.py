"""From token ids to vectors and from vectors to logits, each split over shards by the vocabulary."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.layers.build import Build
from octavo.layers.weight import Matrix, Place, Weight
from octavo.parallel import Shard


class Embedding(nn.Module):
    """``ids [T] -> [T, H]``. Rows are looked up, not multiplied with: they are never packed."""

    def __init__(self, build: Build, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.ops, self.shard = build.ops, build.shard
        self.rows, self.first, place = _share(self.shard, vocab_size, hidden_size)
        self.vocab_size = vocab_size
        self.weight = Weight(build, (self.rows, hidden_size), [place])

    def forward(self, ids: Tensor) -> Tensor:
        if self.shard.size == 1:
            return self.ops.embedding(ids, self.weight)
        local = ids - self.first
        foreign = (local < 0) | (local >= self.rows)
        x = self.ops.embedding(local.masked_fill(foreign, 0), self.weight)
        return self.shard.all_reduce(x.masked_fill(foreign[:, None], 0))


class LMHead(Matrix):
    """``hidden [S, H] -> logits [S, V]`` in float32."""

    def __init__(self, build: Build, vocab_size: int, hidden_size: int) -> None:
        super().__init__(build.for_head)
        self.vocab_size = vocab_size
        rows, _, place = _share(self.shard, vocab_size, hidden_size)
        self.weight = Weight(build, (rows, hidden_size), [place], lazily=build.packing.active)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.product(hidden).float()

    def product(self, hidden: Tensor) -> Tensor:
        """The logits as the product leaves them: in the model's dtype or float32."""
        return self.shard.all_gather(self.ops.logits(hidden, self.operand))[:, : self.vocab_size]

    @classmethod
    def tied(cls, build: Build, embedding: Embedding) -> LMHead:
        """A head that shares the embedding's memory. If it is packed, it has a copy of its own beside it."""
        head = cls.__new__(cls)
        Matrix.__init__(head, build.for_head)
        head.keep_plain = True
        head.vocab_size, head.weight = embedding.vocab_size, embedding.weight
        return head


def _share(shard: Shard, vocab_size: int, hidden_size: int) -> tuple[int, int, Place]:
    """Of ``[V, H]`` rows, of which each shard holds equally many: how many and from which on; those beyond V, where V
    is not a multiple, are padding.
    """
    rows = -(-vocab_size // shard.size)
    first = shard.rank * rows
    real = slice(min(first, vocab_size), min(first + rows, vocab_size))
    return rows, first, Place((vocab_size, hidden_size), (real,), slice(0, real.stop - real.start))
