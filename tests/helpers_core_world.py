"""A scheduler, a simulated device and whoever sends requests: moved at random, checked after each move."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random

from helpers_core_device import EOS, STOP, Device, oracle
from octavo.core.blocks import BlockPool
from octavo.core.plan import Admitted, Event, Finished, Preempted, Sampled, StepPlan, Waits
from octavo.core.request import Request, token_array
from octavo.core.scheduler import Scheduler
from octavo.sampling_params import SamplingParams

PARAMS = [
    SamplingParams(),
    SamplingParams(),
    SamplingParams(stop_token_ids=[STOP]),
    SamplingParams(min_tokens=4),
    SamplingParams(min_tokens=3, stop_token_ids=[2, STOP]),
    SamplingParams(prompt_logprobs=0),
]


@dataclass(frozen=True)
class Setup:
    """The sizes of a world; all small, so that everything runs short all the time."""

    num_blocks: int = 6
    block_size: int = 2
    max_model_len: int = 20
    max_num_seqs: int = 3
    max_num_batched_tokens: int = 5
    policy: str = "fcfs"
    max_in_flight: int = 2
    enable_caching: bool = True
    debug: bool = True

    @classmethod
    def draw(cls, rng: Random) -> Setup:
        seqs = rng.randint(1, 4)
        return cls(
            num_blocks=rng.randint(2, 10),
            block_size=rng.randint(1, 4),
            max_model_len=rng.randint(4, 24),
            max_num_seqs=seqs,
            max_num_batched_tokens=seqs + rng.choice([0, 1, 2, 5, 20]),
            policy=rng.choice(["fcfs", "priority", "fair"]),
            max_in_flight=rng.choice([1, 2, 2, 2, 3]),
            enable_caching=rng.random() < 0.85,
            debug=rng.random() < 0.3,
        )


@dataclass
class Client:
    """What the sender of a request sees of it, and by when it must be over."""

    request: Request
    prompt: list[int]
    deadline: float
    tokens: list[int] = field(default_factory=list)
    state: str = "waiting"
    preemptions: int = 0


class World:
    """Each method is one move, and ends with a check of everything."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        pool = BlockPool(setup.num_blocks, setup.block_size, setup.enable_caching)
        self.scheduler = Scheduler(
            pool,
            max_model_len=setup.max_model_len,
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=setup.max_num_batched_tokens,
            policy=setup.policy,
            max_in_flight=setup.max_in_flight,
            debug=setup.debug,
        )
        self.salts: dict[str, bytes] = {}
        self.device = Device(setup.num_blocks, setup.block_size, self.salts)
        self.clients: dict[str, Client] = {}
        self.flights: deque[StepPlan] = deque()
        self.tables: dict[int, list[int]] = {}
        self.seen: Counter[str] = Counter()
        self.num_moves = self.num_plans = self.num_added = 0

    # ---------------------------------------------------------------- moves

    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        params: SamplingParams = PARAMS[0],
        *,
        salt: bytes = b"",
        priority: int = 0,
        held: str = "",
        share_key: str = "",
        eos: tuple[int, ...] = (EOS,),
    ) -> str:
        """Send a request that fits."""
        request = Request(
            id=str(self.num_added),
            tokens=token_array(prompt),
            params=params,
            max_tokens=max_tokens,
            eos_token_ids=eos,
            priority=priority,
            salt=salt,
            held=held,
            share_key=share_key,
        )
        self.num_added += 1
        self.salts[request.id] = salt
        self.scheduler.add(request)
        deadline = float("inf") if held else self._deadline(prompt, max_tokens)
        self.clients[request.id] = Client(request, prompt, deadline)
        self._check("add")
        return request.id

    def held(self) -> list[str]:
        return [name for name, client in self.clients.items() if client.request.held]

    def release(self, request_id: str) -> None:
        """What it was held for has come; twice is as good as once."""
        client = self.clients[request_id]
        client.deadline = self._deadline(client.prompt, client.request.max_tokens)
        self.scheduler.release(request_id)
        self.scheduler.release(request_id)
        self._check("release")

    def plan(self) -> StepPlan | None:
        """Plan a step; it is launched, but the device runs it only when it lands."""
        plan = self.scheduler.plan()
        if plan is not None:
            self.num_plans += 1
            self._check_plan(plan)
            self._check_order(plan)
            self.flights.append(plan)
            self._hear(plan.events)
        self._check("plan" if plan else "no plan")
        return plan

    def land(self, spoilt: frozenset[int] = frozenset()) -> list[Event]:
        """The oldest step comes back; the rows of the slots ``spoilt`` have gone wrong."""
        result = self.device.run(self.flights.popleft(), self.num_plans, spoilt)
        events = self.scheduler.apply(result)
        self._hear(events)
        self._check("error" if result.errors else "land")
        return events

    def abort(self, request_id: str) -> None:
        finished = self.scheduler.finish(request_id, "abort")
        assert finished is not None
        self._hear([finished])
        self._check("abort")

    def fail_all(self) -> None:
        """The device dies and comes back empty."""
        self._hear(self.scheduler.fail_all())
        assert not self.clients, "a request outlived the device"
        self.flights.clear()
        self.device = Device(self.setup.num_blocks, self.setup.block_size, self.salts)
        self._check("fail_all")

    def drain(self) -> None:
        """Run until nothing is left; then everything must be free."""
        for request_id in self.held():
            self.release(request_id)
        while self.scheduler.has_work():
            if self.plan() is None or len(self.flights) == self.setup.max_in_flight:
                self.land()
        assert not self.clients, f"never finished: {sorted(self.clients)}"
        assert not self.flights, "steps are in flight without work"
        assert self.scheduler.pool.num_free == self.setup.num_blocks, "blocks have leaked"
        assert len(self.scheduler.in_flight.free_slots) == self.setup.max_num_seqs, "slots have leaked"

    # ---------------------------------------------------------------- checks

    def _deadline(self, prompt: list[int], max_tokens: int) -> float:
        """The step by which it is over, if first come is first served.

        The oldest request is never preempted, and goes on at the latest when the steps in flight are back.
        """
        if self.setup.policy != "fcfs":
            return float("inf")
        ahead = sum(len(c.prompt) + c.request.max_tokens for c in self.clients.values())
        work = ahead + len(prompt) + max_tokens
        return self.num_plans + (self.setup.max_in_flight + 1) * (work + 1)

    def _check(self, move: str) -> None:
        self.num_moves += 1
        self.seen[move] += 1
        self.scheduler.check()

    def _check_plan(self, plan: StepPlan) -> None:
        """The budget is kept, and nothing is given away that a step in flight still uses."""
        assert plan.num_tokens <= self.setup.max_num_batched_tokens, "the step is too large"
        slots = [row.slot for row in plan.rows]
        assert len(set(slots)) == len(slots), "a row is twice in a step"
        flying = {row.slot for flight in self.flights for row in flight.rows}
        used = {block for slot in flying for block in self.tables[slot]}
        for new in plan.entering:
            assert new.slot not in flying, "a slot is given away while a step in flight uses it"
            self.tables[new.slot] = list(new.block_ids)
        for row in plan.rows:
            assert used.isdisjoint(row.new_blocks), "a block is given away while a step in flight uses it"
            self.tables[row.slot].extend(row.new_blocks)

    def _check_order(self, plan: StepPlan) -> None:
        """Who runs goes on, unless blocks are in limbo that it needs; then those behind it take none."""
        if any(isinstance(event, Preempted) for event in plan.events):
            return
        rows = {row.slot: row for row in plan.rows}
        someone_waits = False
        for request in self.scheduler.running:
            row = rows.get(request.slot)
            if row is None and request.num_remaining:
                assert self.scheduler.in_flight.limbo, f"{request.id} runs and was passed over"
                someone_waits = True
            assert not (row and row.new_blocks and someone_waits), "blocks were taken that one before waits for"

    def _hear(self, events: list[Event] | tuple[Event, ...]) -> None:
        for event in events:
            client = self.clients[event.request_id]  # nothing is heard of those that are over
            if isinstance(event, Admitted):
                assert client.state == "waiting"
                client.state = "running"
            elif isinstance(event, Preempted):
                assert client.state == "running"
                client.state, client.preemptions = "waiting", client.preemptions + 1
            elif isinstance(event, Waits):
                assert client.state == "waiting"
                assert event.reason
            elif isinstance(event, Sampled):
                client.tokens.append(event.token_id)
            elif isinstance(event, Finished):
                self._judge(client, event)
            self.seen[type(event).__name__] += 1

    def _judge(self, client: Client, end: Finished) -> None:
        """Compare what came with what comes when the request is alone."""
        tokens, reason, stop = oracle(client.request)
        untold = client.request.metrics.num_preemptions - client.preemptions
        if end.reason in ("abort", "error"):
            assert client.tokens == tokens[: len(client.tokens)], "wrong tokens"
            assert untold in (0, 1), "a preemption was not told"  # 1: it ended before there was a plan to tell it
        else:
            assert client.tokens == tokens, "wrong tokens"
            assert (end.reason, end.stop_reason) == (reason, stop), "a wrong end"
            assert untold == 0, "a preemption was not told"
        assert self.num_plans <= client.deadline, "it starved"
        del self.clients[end.request_id]


def draw_request(world: World, rng: Random, prompts: list[list[int]]) -> str:
    """Send a random request whose prompt often begins like an earlier one."""
    limit = world.scheduler.token_limit
    draws = rng.random(), rng.random(), rng.random(), rng.random()
    size = 1 + int(draws[1] * rng.random() * (limit - 1))
    prompt = (rng.choice(prompts) + [1 + (rng.random() < 0.5) for _ in range(size)])[:size]
    prompts[rng.randrange(len(prompts))] = prompt
    room = limit - size
    params = PARAMS[int(draws[0] * len(PARAMS))]
    return world.add(
        prompt,
        1 + int(draws[2] * room),
        params,
        salt=b"s" if draws[0] < 0.1 else b"",
        priority=int(draws[1] * 3),
        held="compiling" if draws[3] < 0.15 else "",
        share_key=str(int(draws[2] * 3)),
        eos=() if draws[3] > 0.7 else (EOS,),
    )


def wander(world: World, rng: Random, num_moves: int) -> None:
    """Move at random until ``num_moves`` more moves were made; then drain."""
    prompts: list[list[int]] = [[] for _ in range(4)]
    crowd = rng.choice([2, 4, 8])
    end = world.num_moves + num_moves
    while world.num_moves < end:
        draw = rng.random()
        if draw < 0.005 and world.clients:
            world.abort(rng.choice(list(world.clients)))
        elif draw < 0.0052:
            world.fail_all()
        elif draw < 0.03 and world.held():
            world.release(rng.choice(world.held()))
        elif draw < 0.2 and len(world.clients) < crowd:
            draw_request(world, rng, prompts)
        elif world.flights and (draw > 0.65 or len(world.flights) == world.setup.max_in_flight):
            spoilt = draw > 0.995
            world.land(frozenset([rng.choice(world.flights[0].rows).slot]) if spoilt else frozenset())
        else:
            world.plan()
    world.drain()
