"""The world of the random traces, moved by hypothesis: when it breaks, it finds a short way there."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from helpers_core_world import PARAMS, Setup, World
from octavo.sampling_params import SamplingParams

SETUPS = st.builds(
    Setup,
    num_blocks=st.integers(2, 8),
    block_size=st.integers(1, 4),
    max_model_len=st.integers(4, 24),
    max_num_seqs=st.integers(1, 4),
    max_num_batched_tokens=st.integers(4, 12),
    policy=st.sampled_from(["fcfs", "priority", "fair"]),
    max_in_flight=st.integers(1, 3),
    enable_caching=st.booleans(),
)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(setup=SETUPS)
    def build(self, setup: Setup) -> None:
        self.world = World(setup)

    @rule(
        prompt=st.lists(st.sampled_from([1, 2]), min_size=1, max_size=12),
        max_tokens=st.integers(1, 12),
        params=st.sampled_from(PARAMS),
        salt=st.sampled_from([b"", b"", b"s"]),
        priority=st.integers(0, 2),
        held=st.sampled_from(["", "", "compiling"]),
        share_key=st.sampled_from("ab"),
    )
    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        params: SamplingParams,
        salt: bytes,
        priority: int,
        held: str,
        share_key: str,
    ) -> None:
        limit = self.world.scheduler.token_limit
        prompt = prompt[: limit - 1]
        max_tokens = min(max_tokens, limit - len(prompt))
        self.world.add(prompt, max_tokens, params, salt=salt, priority=priority, held=held, share_key=share_key)

    @precondition(lambda self: self.world.held())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.world.release(data.draw(st.sampled_from(sorted(self.world.held()))))

    @rule()
    def plan(self) -> None:
        self.world.plan()

    @precondition(lambda self: self.world.flights)
    @rule()
    def land(self) -> None:
        self.world.land()

    @precondition(lambda self: self.world.flights)
    @rule(data=st.data())
    def land_spoilt(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.world.flights[0].rows))
        self.world.land(frozenset([row.slot]))

    @precondition(lambda self: self.world.clients)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(data.draw(st.sampled_from(sorted(self.world.clients))))

    @rule()
    def fail_all(self) -> None:
        self.world.fail_all()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
