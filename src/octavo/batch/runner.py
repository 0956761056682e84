"""Runs a batch: reads lines ahead of the engine, steps it, and writes answers in the order in which they are done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.batch.lines import (
    DUPLICATE,
    INVALID_LINE,
    Envelope,
    Job,
    encode_line,
    line_id,
    parse_envelope,
    parse_job,
)
from octavo.batch.output_file import OutputFile
from octavo.errors import ModelError, OctavoError, RequestError
from octavo.grammar.form_check import FormCheck
from octavo.openai.errors import ErrorBody, FieldError, failure, refusal
from octavo.openai.requests import check_unforced, prompts_of, sampling_params, template_options
from octavo.openai.responses import Answered, ChatCompletion, Completion, chat_completion, completion
from octavo.openai.schema import ChatCompletionRequest
from octavo.openai.structured import form_error, form_field
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from octavo.llm import LLM

Lines = Iterator[tuple[int, bytes | None]]


@dataclass(slots=True)
class Tally:
    """What has become of the lines so far, in lines and tokens."""

    answered: int = 0
    refused: int = 0
    failed: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def lines(self) -> int:
        return self.answered + self.refused + self.failed + self.skipped


@dataclass(slots=True)
class _Running:
    """A job in the engine: one request for each of its prompts."""

    job: Job
    request_ids: list[str]
    outputs: dict[str, RequestOutput] = field(default_factory=dict)


class BatchRunner:
    """One pass over the lines of a batch.

    Args:
        llm: who answers.
        output: where the answers go, and what has been answered already.
        max_queued: lines are read until so many requests wait or run in the engine; twice a full batch if None.

    Attributes:
        tally: how far it is.
    """

    def __init__(self, llm: LLM, output: OutputFile, *, max_queued: int | None = None) -> None:
        self.tally = Tally()
        self._llm = llm
        self._engine = llm.engine
        self._output = output
        self._max_queued = max_queued or 2 * llm.config.max_num_seqs
        self._forms = _form_check(llm)
        self._running: dict[str, _Running] = {}
        self._seen: set[str] = set()
        self._run_id = secrets.token_hex(8)

    def run(
        self, lines: Lines, check: Callable[[], None] = lambda: None, report: Callable[[], None] = lambda: None
    ) -> None:
        """Answer every line that has not been answered yet.

        ``check`` is called between steps and lines and may raise, to stop; ``report`` after the tally has changed.

        Raises:
            OctavoError: the output cannot be written, or the model failed. What is written stays.
        """
        self._output.begin()
        more = True
        while more or self._running:
            more = more and self._read_ahead(lines, check, report)
            check()
            for output in self._step():
                if output.finished:
                    self._take(output)
            report()

    def _read_ahead(self, lines: Lines, check: Callable[[], None], report: Callable[[], None]) -> bool:
        """Fill the engine's queue; False at the end of the input."""
        while len(self._engine.scheduler.requests) < self._max_queued:
            check()
            line = next(lines, None)
            if line is None:
                return False
            self._start(*line)
            report()
        return True

    def _step(self) -> list[RequestOutput]:
        try:
            return self._engine.step()
        except OctavoError:
            raise
        except Exception as error:  # whatever it is, the answers so far are safe and the rest can be run again
            raise ModelError(f"the model failed in a step: {type(error).__name__}: {error}") from error

    # ---------------------------------------------------------------- lines

    def _start(self, number: int, data: bytes | None) -> None:
        """Queue a line's request, refuse it, or pass over it."""
        if data == b"":
            self.tally.skipped += 1
            return
        try:
            envelope = self._envelope(number, data)
        except FieldError as error:
            self._refuse_line(number, None, error)
            return
        done = self._output.done
        if envelope.custom_id in self._seen:
            message = f"custom_id {envelope.custom_id!r:.100} is that of an earlier line"
            self._refuse_line(number, envelope.custom_id, FieldError(message, "custom_id", DUPLICATE))
        elif envelope.custom_id in done.custom_ids:
            self.tally.skipped += 1
        else:
            self._try_job(envelope)
        self._seen.add(envelope.custom_id)

    def _envelope(self, number: int, data: bytes | None) -> Envelope:
        if data is None:
            raise FieldError(f"line {number} is too long", code=INVALID_LINE)
        return parse_envelope(number, data)

    def _refuse_line(self, number: int, custom_id: str | None, error: FieldError) -> None:
        """Refuse a line that no custom id tells apart from others, unless an earlier run did it."""
        if line_id(number) in self._output.done.line_ids:
            self.tally.skipped += 1
        else:
            self._write(number, custom_id, refusal(error), 400)

    def _try_job(self, envelope: Envelope) -> None:
        fields: tuple[str, ...] = ()
        try:
            job = parse_job(envelope)
            fields = job.body.__struct_fields__
            self._add(job)
        except RequestError as error:
            self._write(envelope.number, envelope.custom_id, refusal(error, fields), 400)

    def _add(self, job: Job) -> None:
        """Queue a job's requests: all, or none if one of them can never be served."""
        params = sampling_params(job.body, self._engine.generation)
        self._check_form(job, params)
        running = _Running(job, [])
        try:
            self._add_requests(running, params)
        except RequestError:
            for request_id in running.request_ids:
                self._engine.abort(request_id)
            raise
        self._running |= dict.fromkeys(running.request_ids, running)

    def _check_form(self, job: Job, params: SamplingParams) -> None:
        """Raise ``FieldError`` for a form that cannot be compiled: the line is at fault then, not the model."""
        if params.structured_outputs is None or self._forms is None:
            return
        try:
            self._forms.check(params.structured_outputs)
        except RequestError as error:
            raise form_error(form_field(job.body), error) from None

    def _add_requests(self, running: _Running, params: SamplingParams) -> None:
        body, prompts, lora = running.job.body, self._prompts(running.job), self._lora_of(running.job)
        chat = isinstance(body, ChatCompletionRequest)  # the template writes BOS itself
        for prompt in prompts:
            request_id = self._engine.add_request(
                prompt, params, priority=body.priority or 0, add_special_tokens=not chat, lora=lora
            )
            running.request_ids.append(request_id)

    def _lora_of(self, job: Job) -> str | None:
        """A job whose model is the name of an adapter gets that; any other name is the model that runs."""
        names = {info.name for info in self._engine.loras()}
        return job.body.model if job.body.model in names else None

    def _prompts(self, job: Job) -> list[str] | list[list[int]]:
        if isinstance(job.body, ChatCompletionRequest):
            check_unforced(job.body)
            return [self._llm.render(job.body.messages, **template_options(job.body))]
        return prompts_of(job.body)

    # ---------------------------------------------------------------- answers

    def _take(self, output: RequestOutput) -> None:
        """Keep a finished output; write the answer if it was the last of its job."""
        running = self._running.pop(output.request_id, None)
        if running is None:
            return
        running.outputs[output.request_id] = output
        if len(running.outputs) == len(running.request_ids):
            self._answer(running.job, [running.outputs[i] for i in running.request_ids])

    def _answer(self, job: Job, outputs: list[RequestOutput]) -> None:
        refused = next((output for output in outputs if output.refused is not None), None)
        if refused is not None:
            error = _error_of(refused, job)
            self._write(job.number, job.custom_id, refusal(error, job.body.__struct_fields__), 400)
            return
        errors = [c.stop_reason for output in outputs for c in output.outputs if c.finish_reason == "error"]
        if errors:
            self._write(job.number, job.custom_id, failure(f"the model failed: {errors[0]}"), 500)
            return
        self._write(job.number, job.custom_id, self._body(job, outputs), 200)

    def _body(self, job: Job, outputs: list[RequestOutput]) -> ChatCompletion | Completion:
        tokenizer = self._engine.tokenizer
        written = None if tokenizer is None else tokenizer.token_bytes
        kind = "chatcmpl" if isinstance(job.body, ChatCompletionRequest) else "cmpl"
        model = self._lora_of(job) or self._llm.config.model
        by = Answered(f"{kind}-{self._name(job.number)}", int(time.time()), model, written)
        if isinstance(job.body, ChatCompletionRequest):
            return chat_completion(outputs[0], job.body.top_logprobs or 0, by)
        return completion(outputs, by)

    def _write(
        self, number: int, custom_id: str | None, body: ChatCompletion | Completion | ErrorBody, status: int
    ) -> None:
        self._output.append(encode_line(number, custom_id, f"req_{self._name(number)}", body, status))
        if isinstance(body, ErrorBody):
            self.tally.refused += status == 400
            self.tally.failed += status == 500
            return
        self.tally.answered += 1
        self.tally.prompt_tokens += body.usage.prompt_tokens
        self.tally.output_tokens += body.usage.completion_tokens

    def _name(self, number: int) -> str:
        return f"{self._run_id}-{number}"


def _error_of(refused: RequestOutput, job: Job) -> RequestError:
    """What the sender of a job did wrong, one of whose outputs is ``refused``."""
    if refused.refused_kind == "form":
        return form_error(form_field(job.body), refused.refused)
    return RequestError(refused.refused)


def _form_check(llm: LLM) -> FormCheck | None:
    """None without a tokenizer: the engine refuses forms then."""
    tokenizer = llm.engine.tokenizer
    return None if tokenizer is None else FormCheck(tokenizer, llm.engine.model_config.vocab_size)
