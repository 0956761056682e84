"""Joins core, execution and text, and drives them; `build_engine` makes one.

One step is: plan and start steps until two are on their way, wait for the older one, apply what it brought, and turn
the core's events into outputs. So while this thread applies, decodes text and plans, the next step is already running.
Where that one samples by a grammar, its masks are handed over as soon as the tokens of the older one are known.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from octavo.adapters import Adapters
from octavo.assemble import Assembler
from octavo.config import EngineConfig, ModelConfig
from octavo.core.blocks import BlockPool
from octavo.core.plan import Event, StepPlan, Waits
from octavo.core.request import Request
from octavo.core.scheduler import Scheduler
from octavo.errors import RequestError, UsageError
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.executor import Executor, Pending, make_executor
from octavo.execution.memory import Ledger, tokens_per_step
from octavo.execution.runner import Runner
from octavo.grammar.grammars import Ending, Grammars
from octavo.intake import Intake, Prompt, check_params, check_request_id, member_id, unwrap
from octavo.lora import AdapterInfo
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer

_NAP = 0.01
"""Seconds to wait at a time where there is nothing to do but for a grammar to be compiled."""

Listener = Callable[[StepPlan | None, Sequence[Event]], None]


class Engine:
    """Requests in, outputs out, one step at a time. One thread calls it; a second one at the same time is refused.

    Attributes:
        config: how it was asked to run.
        model_config: what it runs.
        tokenizer: None if the model came without one; prompts are then token ids and outputs have no text.
        generation: sampling options that the model's makers suggest.
        ledger: who has the memory.
        scheduler: the core, to look at.
        adapters: the LoRA adapters that are loaded.
        listeners: called in the order of events, with a plan and its events when a step is started, and with None and
            events when one has come back, or requests were ended from outside or are held. They must not change
            anything.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        runner: Runner | DeviceRunner,
        ledger: Ledger,
        tokenizer: Tokenizer | None,
        generation: Mapping[str, float] | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self.config = config
        self.model_config = model_config
        self.tokenizer = tokenizer
        self.generation = dict(generation or {})
        self.ledger = ledger
        self.listeners: list[Listener] = []
        ahead = plans_ahead(config, runner)
        self.scheduler = _make_scheduler(config, ledger, ahead)
        self._executor: Executor = make_executor(runner, ahead=ahead)
        self._assembler = Assembler(tokenizer)
        self._grammars = grammars or Grammars(tokenizer, model_config.vocab_size)
        self._in_flight: deque[tuple[StepPlan, Pending]] = deque()
        self._ids = itertools.count()
        self._lock = threading.RLock()
        self.adapters = Adapters(runner.adapters, self.scheduler, config)
        self._intake = Intake(tokenizer, model_config, token_limit=self.scheduler.token_limit, seed=config.seed)

    # ---------------------------------------------------------------- requests

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        share_key: str = "",
        add_special_tokens: bool = True,
        lora: str | None = None,
    ) -> str:
        """Queue a prompt and return the request's id.

        Args:
            prompt: text, or token ids.
            params: how to sample; ``SamplingParams()`` if None.
            request_id: a name of the caller's own, which no unfinished request may have.
            priority: lower runs first, with ``scheduling_policy="priority"``.
            cache_salt: requests share cached blocks only with those of the same salt.
            share_key: whose request it is, with ``scheduling_policy="fair"``.
            add_special_tokens: let the tokenizer add its BOS; a rendered chat template brings its own.
            lora: the name of a LoRA adapter that is loaded.

        Raises:
            RequestError: it can never be served, with what could be; nothing was queued.
        """
        params, prompt = check_params(params), unwrap(prompt)
        token_ids = self.encode(prompt, add_special_tokens)
        with self._alone():
            request_id = self._new_id(request_id, params.n)
            adapter = None if lora is None else self.adapters.find(lora)
            requests = self._intake.make_requests(
                request_id,
                token_ids,
                params,
                priority=priority,
                salt=cache_salt,
                adapter=adapter,
                share_key=share_key,
            )
            try:
                self._queue(request_id, prompt if isinstance(prompt, str) else None, token_ids, requests)
            except BaseException:  # refused, or interrupted half-way
                self._forget(request_id, requests)
                raise
        return request_id

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a second thread while one is at work: waiting for it would hide that the two take turns."""
        if not self._lock.acquire(blocking=False):
            raise UsageError("another thread is using this engine; accepted: calls of one thread at a time")
        try:
            yield
        finally:
            self._lock.release()

    def _queue(self, request_id: str, prompt: str | None, prompt_ids: list[int], requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            self._hold_for_grammar(request)
            self.scheduler.add(request, now)
        self._assembler.add(request_id, prompt, prompt_ids, requests)
        if held := [Waits(request.id, request.held) for request in requests if request.held]:
            self._tell(None, held)

    def _hold_for_grammar(self, request: Request) -> None:
        """Start to compile the request's grammar, if it has one; it waits until that is done."""
        form = request.params.structured_outputs
        if form is not None:
            request.held = self._grammars.add(request.id, form, request.eos_token_ids)

    def _forget(self, request_id: str, requests: Sequence[Request]) -> None:
        for request in requests:
            self.scheduler.finish(request.id, "abort")
            self._grammars.forget(request.id)
        self._assembler.forget(request_id)

    def output(self, request_id: str) -> RequestOutput | None:
        """The output of an unfinished request, which grows as the engine steps; None if there is no such request."""
        return self._assembler.output(request_id)

    def abort(self, request_id: str, stop_reason: str | None = None) -> RequestOutput | None:
        """End a request now; its output so far, or None if there is no such unfinished request."""
        with self._alone():
            now, members = time.monotonic(), self._assembler.member_ids(request_id)
            ends = [self.scheduler.finish(member, "abort", now, stop_reason) for member in members]
            outputs = self._apply_ends(ends)
        return outputs[0] if outputs else None

    def _apply_ends(self, ends: Sequence[Event | None]) -> list[RequestOutput]:
        """Take in the ends of requests that did not come with a step; their outputs."""
        events = [event for event in ends if event is not None]
        self._grammars.apply(events)
        outputs, _ = self._assembler.apply(events)
        self.adapters.drop_unused()
        if events:
            self._tell(None, events)
        return outputs

    def abort_all(self) -> None:
        """Abort every request and wait for the steps in flight, so that nothing is left running."""
        for request_id in self._assembler.ids():
            self.abort(request_id)
        try:
            while self._in_flight:
                self._collect()
        except BaseException:
            self._give_up()
            raise

    def add_lora(self, name: str, path: str, *, replace_idle: bool = False) -> AdapterInfo:
        """Load a LoRA adapter, a folder in PEFT's format, for requests to ask for by ``name``; with ``replace_idle`` in
        place of one that nothing uses, if there are too many.

        Raises:
            RequestError: it does not suit, or there are too many.
        """
        with self._alone():
            self.adapters.check_room(name, replace_idle=replace_idle)
            return self.adapters.keep(name, path, self.adapters.read(path), replace_idle=replace_idle)

    def remove_lora(self, name: str) -> None:
        """Forget an adapter; requests that have it are finished first. ``RequestError``: there is none."""
        with self._alone():
            self.adapters.remove(name)

    def loras(self) -> list[AdapterInfo]:
        """The adapters that requests may ask for."""
        return self.adapters.infos()

    def reset_prefix_cache(self) -> None:
        """Forget what is cached of prompts; requests that run keep their blocks."""
        with self._alone():
            self.scheduler.pool.forget_all()

    def has_unfinished_requests(self) -> bool:
        return len(self._assembler) > 0

    @property
    def num_unfinished_requests(self) -> int:
        return len(self._assembler)

    def _new_id(self, wanted: str | None, n: int) -> str:
        if wanted is None:
            return next(name for name in (f"request-{i}" for i in self._ids) if not self._is_taken(name, n))
        if self._is_taken(check_request_id(wanted), n):
            raise RequestError(f"there is an unfinished request {wanted!r} already; each needs an id of its own")
        return wanted

    def _is_taken(self, name: str, n: int) -> bool:
        members = (member_id(name, i, n) for i in range(n))
        return name in self._assembler or any(member in self.scheduler.requests for member in members)

    def encode(self, prompt: Prompt, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, which may be token ids already; ``RequestError`` for text without a tokenizer."""
        return self._intake.encode(prompt, add_special_tokens)

    # ---------------------------------------------------------------- steps

    def step(self) -> list[RequestOutput]:
        """Run until one step has come back; return the requests with news.

        Outputs are cumulative and alive: the same object is returned again, grown, until it is finished.

        Raises:
            Exception: the model failed. All requests are then finished with reason "error"; the engine can go on.
        """
        with self._alone():
            try:
                ended = self._release_compiled()
                self._launch()
                if self._in_flight:
                    return ended + self._collect()
                if not ended:
                    self._grammars.wait(_NAP)
                return ended
            except BaseException:  # an interrupt in the middle of a step leaves it half done, like an error
                self._give_up()
                raise

    def _launch(self) -> None:
        """Plan and start steps until as many are in flight as may be."""
        while (plan := self.scheduler.plan(time.monotonic())) is not None:
            self._in_flight.append((plan, self._executor.execute(plan)))
            if len(self._in_flight) == 1:
                self._mask_oldest()
            self._tell(plan, plan.events)

    def _collect(self) -> list[RequestOutput]:
        """Wait for the oldest step and apply it."""
        _, pending = self._in_flight.popleft()
        result = pending.result()
        now = time.monotonic()
        events = self.scheduler.apply(result, now)
        endings = self._grammars.apply(events)
        self._mask_oldest()  # before all else: the device may be waiting
        outputs, stopped = self._assembler.apply(events)
        self._tell(None, events)
        ends = [self.scheduler.finish(member, "stop", now, text) for member, text in stopped]
        self._apply_ends([*ends, *self._finish(endings, now)])
        self.adapters.drop_unused()
        if self.config.debug:
            self.scheduler.check()
        return outputs

    def _mask_oldest(self) -> None:
        """The tokens before the oldest step in flight are known: hand over the masks that it waits for, if it does."""
        if self._in_flight:
            plan, pending = self._in_flight[0]
            if plan.masked:
                pending.mask(self._grammars.masks(plan))

    def _release_compiled(self) -> list[RequestOutput]:
        """Let requests go on whose grammars have been compiled; the outputs of those whose cannot be."""
        ready, endings = self._grammars.ready()
        for request_id in ready:
            self.scheduler.release(request_id)
        return self._apply_ends(self._finish(endings, time.monotonic()))

    def _finish(self, endings: Sequence[Ending], now: float) -> list[Event | None]:
        return [self.scheduler.finish(e.request_id, e.reason, now, e.stop_reason) for e in endings]

    def _tell(self, plan: StepPlan | None, events: Sequence[Event]) -> None:
        for listener in self.listeners:
            listener(plan, events)

    def _give_up(self) -> None:
        """A step failed, so the device's state is unknown: end all requests, forget the cache."""
        try:
            self._executor.wait()
        finally:  # a device that is lost cannot be waited for
            self._in_flight.clear()
            self._apply_ends(self.scheduler.fail_all(time.monotonic()))
            self.adapters.drop_unused()

    def shutdown(self) -> None:
        """Abort what runs and let go of the thread. Safe to call twice."""
        try:
            self.abort_all()
        finally:
            gc.unfreeze()
            self._grammars.stop()
            self._executor.stop()


def plans_ahead(config: EngineConfig, runner: Runner | DeviceRunner) -> bool:
    """Whether a step is planned while another runs.

    On a CPU not, unless asked for: the model keeps all cores busy, and a second thread that computes makes the pools of
    both threads yield to each other, which costs more than the planning that it would hide.
    """
    return config.async_scheduling if config.async_scheduling is not None else isinstance(runner, DeviceRunner)


def _make_scheduler(config: EngineConfig, ledger: Ledger, ahead: bool) -> Scheduler:
    return Scheduler(
        BlockPool(ledger.num_blocks, ledger.block_size, config.enable_prefix_caching),
        max_model_len=ledger.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=tokens_per_step(config),
        policy=config.scheduling_policy,
        max_in_flight=2 if ahead else 1,
        max_loras=config.lora_places,
        debug=config.debug,
    )
