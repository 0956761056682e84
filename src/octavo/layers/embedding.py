"""From token ids to vectors and from vectors to logits, each split over shards by the vocabulary."""

from __future__ import annotations

from torch import Tensor

from octavo.layers.build import Build
from octavo.layers.weight import Matrix, Place, Weight


class _VocabularyMatrix(Matrix):
    """A ``[V, H]`` matrix of which each shard holds equally many rows; the last ones are padding if V is not
    a multiple.
    """

    def __init__(self, build: Build, vocab_size: int, hidden_size: int) -> None:
        super().__init__(build)
        self.vocab_size = vocab_size
        self.rows = -(-vocab_size // self.shard.size)
        self.first = self.shard.rank * self.rows
        real = slice(min(self.first, vocab_size), min(self.first + self.rows, vocab_size))
        place = Place((vocab_size, hidden_size), (real,), slice(0, real.stop - real.start))
        self.weight = Weight(build, (self.rows, hidden_size), [place])
        self.weight.data[place.rows.stop :].zero_()


class Embedding(_VocabularyMatrix):
    """``ids [T] -> [T, H]``."""

    def pack(self) -> None:
        """Rows are looked up, not multiplied with: they stay as they are."""

    def forward(self, ids: Tensor) -> Tensor:
        if self.shard.size == 1:
            return self.ops.embedding(ids, self.weight)
        local = ids - self.first
        foreign = (local < 0) | (local >= self.rows)
        x = self.ops.embedding(local.masked_fill(foreign, 0), self.weight)
        return self.shard.all_reduce(x.masked_fill(foreign[:, None], 0))


class LMHead(_VocabularyMatrix):
    """``hidden [S, H] -> logits [S, V]`` in float32."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.product(hidden).float()

    def product(self, hidden: Tensor) -> Tensor:
        """The logits in the model's dtype, as the product leaves them."""
        return self.shard.all_gather(self.multiply(hidden))[:, : self.vocab_size]

    @classmethod
    def tied(cls, build: Build, embedding: Embedding) -> LMHead:
        """A head that shares the embedding's memory."""
        head = cls.__new__(cls)
        Matrix.__init__(head, build)
        head.keep_plain = True
        head.vocab_size, head.rows, head.first = embedding.vocab_size, embedding.rows, embedding.first
        head.weight = embedding.weight
        return head
