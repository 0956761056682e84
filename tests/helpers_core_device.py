"""A device without a model, and a model without a device: what the scheduler's plans are checked against.

The next token is a function of the whole prefix. The key and value of a token are a fingerprint of its
prefix, so that whoever reads a wrong block, or too early, or after it was given to another, is found out at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from octavo.core.plan import NewRow, RowStep, StepPlan, StepResult, table_checksum
from octavo.core.request import Request

EOS, STOP = 0, 3
POISON = -1


def start_of(salt: bytes, adapter_id: int = 0) -> int:
    """The fingerprint of the empty prefix; tenants that are kept apart, and adapters, have different ones."""
    return 7 + int.from_bytes(salt, "big") + (adapter_id << 32)


def extend(fingerprint: int, token: int) -> int:
    return hash((fingerprint, token)) & 0xFFFFFFFFFFFF


def next_token(fingerprint: int) -> int:
    """Mostly 1 or 2, so that prompts and outputs often agree; at times a token that ends something."""
    draw = (fingerprint >> 7) % 24
    return draw if draw in (EOS, STOP) else 1 + draw % 2


def oracle(request: Request) -> tuple[list[int], str, int | None]:
    """Output, finish reason and stop token of a request that is alone in the world, token by token."""
    fingerprint = start_of(request.salt, request.adapter.id if request.adapter else 0)
    for token in request.tokens[: request.num_prompt_tokens]:
        fingerprint = extend(fingerprint, token)
    output: list[int] = []
    while True:
        output.append(token := next_token(fingerprint))
        fingerprint = extend(fingerprint, token)
        may_stop = len(output) >= request.params.min_tokens
        if may_stop and token in request.eos_token_ids:
            return output, "stop", None
        if may_stop and token in request.params.stop_token_ids:
            return output, "stop", token
        if len(output) == request.max_tokens:
            return output, "length", None


@dataclass
class Row:
    """The device's copy of a row: its tokens, their prefixes' fingerprints, its block table."""

    request_id: str
    entered: int
    adapter: int
    adapter_id: int
    tokens: list[int]
    fingerprints: list[int]
    end: int = 0
    table: list[int] = field(default_factory=list)


class Device:
    """Runs plans in their order. All that it knows comes from the plans; ``salts`` is for checks alone."""

    def __init__(self, num_blocks: int, block_size: int, salts: dict[str, bytes]) -> None:
        self.block_size = block_size
        self.kv = [[0] * block_size for _ in range(num_blocks)]
        self.rows: dict[int, Row] = {}
        self.cleansed_at = 0  # rows that entered from this step on must not find anything poisoned
        self._salts = salts
        self._adapters = {0: 0}  # what is in each place

    def run(self, plan: StepPlan, num_planned: int, spoilt: frozenset[int] = frozenset()) -> StepResult:
        """Run a step. The rows of the slots ``spoilt`` write rubbish; they and who reads it get errors.

        Requests that entered in one of the ``num_planned`` steps planned so far may hold rubbish already.
        """
        for load in plan.loads:
            self._adapters[load.number] = load.adapter_id
        for new in plan.entering:
            self._install(new, plan.step)
        for step in plan.rows:
            self._write(step)
        if plan.checksum is not None:
            self._check_sum(plan)
        tokens, errors = [], {}
        for step in plan.rows:
            if step.slot in spoilt or self._reads_rubbish(step):
                self.cleansed_at = num_planned
                self._spoil(step)
                errors[step.slot] = "NaN"
            if step.samples:
                tokens.append(self._sample(step))
        return StepResult(plan.step, tuple(tokens), errors=errors)

    def _check_sum(self, plan: StepPlan) -> None:
        slots = sorted(step.slot for step in plan.rows)
        tables = [(s, self.rows[s].end, self.rows[s].table) for s in slots]
        assert plan.checksum == table_checksum(tables), "the two sides' block tables differ"

    def _install(self, new: NewRow, step: int) -> None:
        adapter_id = self._adapters[new.adapter]
        start = start_of(self._salts[new.request_id], adapter_id)
        fingerprints = list(accumulate(new.token_ids, extend, initial=start))[1:]
        row = Row(
            new.request_id, step, new.adapter, adapter_id, list(new.token_ids), fingerprints, table=list(new.block_ids)
        )
        row.end = len(row.table) * self.block_size
        self.rows[new.slot] = row

    def _write(self, step: RowStep) -> None:
        row, size = self.rows[step.slot], self.block_size
        assert step.num_tokens >= 1, "a row without tokens"
        assert self._adapters[row.adapter] == row.adapter_id, "another adapter is where the row's was"
        assert step.start == row.end, "a row does not go on where it stopped"
        row.table += step.new_blocks
        row.end = step.start + step.num_tokens
        assert len(row.table) == -(-row.end // size), "blocks too many or too few"
        assert row.end <= len(row.tokens), "tokens that do not exist"
        assert step.samples == (row.end == len(row.tokens)), "a token is sampled too early or too late"
        for position in range(step.start, row.end):
            self.kv[row.table[position // size]][position % size] = row.fingerprints[position]

    def _spoil(self, step: RowStep) -> None:
        row, size = self.rows[step.slot], self.block_size
        for position in range(step.start, row.end):
            self.kv[row.table[position // size]][position % size] = POISON

    def _reads_rubbish(self, step: RowStep) -> bool:
        """Look at all keys and values that the row attends to; they must be its own prefix's."""
        row = self.rows[step.slot]
        seen = [value for block in row.table for value in self.kv[block]][: row.end]
        if seen == row.fingerprints[: row.end]:
            return False
        assert POISON in seen, f"{row.request_id} reads the keys and values of another"
        assert row.entered < self.cleansed_at, f"{row.request_id} found what a failed request left behind"
        return True

    def _sample(self, step: RowStep) -> int:
        row = self.rows[step.slot]
        token = next_token(row.fingerprints[-1])
        row.tokens.append(token)
        row.fingerprints.append(extend(row.fingerprints[-1], token))
        return token
