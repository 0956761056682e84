"""``LLM``: a model in this process, with the verbs most people want."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from octavo.build_engine import build_engine
from octavo.config import EngineConfig
from octavo.cursor import Cursor
from octavo.engine import Engine
from octavo.errors import RequestError
from octavo.intake import Prompt, check_params
from octavo.lora import LoRARequest, Loras, lora_for_each
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import PoolingParams, SamplingParams
from octavo.text.chat import render_chat

Message = Mapping[str, Any]


class LLM:
    """Loads a model and generates with it.

    Args:
        model: an alias (``"smollm2-135m"``), a hub repository, a folder, or a ``.gguf`` file.
        kwargs: the fields of `octavo.config.EngineConfig`; an unknown one is an error that names the nearest.

    Attributes:
        engine: the loop itself, for who wants to add requests and step by hand.
        config: the ``EngineConfig``, with what the device decides filled in.
        tokenizer: the model's tokenizer, or None.
    """

    def __init__(self, model: str, **kwargs: Any) -> None:
        self.engine: Engine = build_engine(EngineConfig.from_kwargs(model, **kwargs), progress=sys.stderr.isatty())
        self.config = self.engine.config

    @property
    def tokenizer(self) -> Any:
        return self.engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's makers suggest, where they suggest something."""
        suggested: dict[str, Any] = dict(self.engine.generation)
        return SamplingParams(**suggested)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        lora_request: Loras = None,
    ) -> list[RequestOutput]:
        """Complete prompts, as many at once as fit; outputs are in the prompts' order.

        Args:
            prompts: one prompt or many; each is text or a list of token ids.
            sampling_params: for all, or one for each; None: the model's defaults.
            use_tqdm: show a progress bar on standard error.
            priority: one for each prompt, with ``scheduling_policy="priority"``; lower runs first.
            lora_request: the LoRA adapter of all prompts, or one (or None) for each; what is not loaded yet is loaded.

        Raises:
            RequestError: a prompt can never be served. None of them has then been started.

        Requests that the engine has already go on meanwhile; ``engine.output`` finds theirs.
        """
        many = _as_list(prompts)
        params = self._params_for(sampling_params, len(many))
        if priority is not None and not isinstance(priority, list | tuple):
            raise RequestError(f"priority={priority!r:.80}; accepted: a list with one whole number for each prompt")
        priorities = [0] * len(many) if priority is None else list(priority)
        if len(priorities) != len(many):
            raise RequestError(f"{len(priorities)} priorities for {len(many)} prompts; one for each is needed")
        loras = lora_for_each(lora_request, len(many))
        return self._run(many, params, priorities, loras, use_tqdm, add_special_tokens=True)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        lora_request: Loras = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: each is a list of ``{"role": …, "content": …}``.

        The text is what the model writes, with reasoning and tool calls in its own format; `octavo.text.output.router`
        tells them apart. ``continue_final_message`` has the model go on with the last message instead of answering it.

        Raises:
            RequestError: there is no chat template, it refuses the messages, or a prompt can never be served.
        """
        conversations = _as_conversations(messages)
        extra = dict(chat_template_kwargs or {})
        prompts = [
            self.render(
                c,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **extra,
            )
            for c in conversations
        ]
        params = self._params_for(sampling_params, len(prompts))
        loras = lora_for_each(lora_request, len(prompts))
        return self._run(prompts, params, [0] * len(prompts), loras, use_tqdm, add_special_tokens=False)

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, use_tqdm: bool = True, lora_request: Loras = None
    ) -> list[NDArray[np.float32]]:
        """A vector of length 1 for each prompt, ``[hidden_size]`` float32: the products of two say how near they are.

        It is the model's last hidden state at the prompt's last token, as models like Qwen3-Embedding are made for;
        another model's are of little use.

        Raises:
            RequestError: a prompt can never be served, or its state is not finite.
        """
        many = _as_list(prompts)
        params, loras = [PoolingParams()] * len(many), lora_for_each(lora_request, len(many))
        outputs = self._run(many, params, [0] * len(many), loras, use_tqdm, add_special_tokens=True)
        for i, output in enumerate(outputs):
            if output.embedding is None:
                raise RequestError(f"prompt {i}: {output.outputs[0].stop_reason or 'there is no vector of it'}")
        return [np.asarray(output.embedding, np.float32) for output in outputs]

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        lora_request: LoRARequest | None = None,
    ) -> Iterator[CompletionOutput]:
        """Complete one prompt (or conversation) and yield what is new, piece by piece.

        Each piece is a ``CompletionOutput`` with only the new ``text``, ``token_ids`` and ``logprobs``; the last one of
        each completion has its ``finish_reason``. Closing the iterator, or dropping it, aborts the request. Several
        streams may be read in turns.
        """
        params = sampling_params or self.get_default_sampling_params()
        [lora] = lora_for_each(lora_request, 1)
        request_id = self.engine.add_request(self.encode(prompt), params, lora=self._loaded(lora))
        pieces = self._pieces(request_id)
        # A generator that was never started does not run its ``finally`` when it is dropped.
        weakref.finalize(pieces, self.engine.abort, request_id).atexit = False
        return pieces

    def _pieces(self, request_id: str) -> Iterator[CompletionOutput]:
        with closing(self.follow(request_id)) as updates:  # when this is closed, that is, too: not some time later
            for _, piece in updates:
                yield piece

    def follow(self, request_id: str) -> Generator[tuple[RequestOutput, CompletionOutput], None, None]:
        """Step until an added request is finished; yield its output so far and, beside it, what is new.

        Raises:
            RequestError: there is no such unfinished request.
        """
        output = self.engine.output(request_id)
        if output is None:
            raise RequestError(f"there is no unfinished request {request_id!r}")
        cursors: dict[int, Cursor] = {}
        finished = False
        try:
            while not finished:
                finished = output.finished  # someone else's steps, while this one stood still, may have ended it
                for piece in _news(output, cursors):
                    yield output, piece
                if not finished:
                    self.engine.step()
        finally:
            if not output.finished:
                self.engine.abort(request_id)

    def encode(self, prompt: Prompt | Sequence[Message]) -> list[int]:
        """Token ids of a text (with BOS, if the model wants it), a conversation, or token ids as they are."""
        if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], Mapping):
            return self.engine.encode(self.render(prompt), add_special_tokens=False)
        return self.engine.encode(prompt)  # type: ignore[arg-type]

    def render(self, messages: Any, *, chat_template: str | None = None, **kwargs: Any) -> str:
        """The prompt that the chat template makes of a conversation."""
        tokenizer = self.engine.tokenizer
        template = chat_template or self.config.chat_template or (tokenizer.chat_template if tokenizer else None)
        if tokenizer is None:
            raise RequestError("the model has no tokenizer; use generate with token ids")
        kwargs.setdefault("add_generation_prompt", True)
        return render_chat(template, messages, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token, **kwargs)

    def shutdown(self) -> None:
        """Abort what runs and let go of the engine's thread. Using the LLM as a context manager does it, too."""
        self.engine.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _params_for(self, params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if params is None:
            params = self.get_default_sampling_params()
        if not isinstance(params, list | tuple):
            return [check_params(params)] * count  # type: ignore[arg-type]
        if len(params) != count:
            raise RequestError(
                f"{len(params)} sampling_params for {count} prompts; one for all, or one for each, is needed"
            )
        return list(params)

    def _run(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        priorities: Sequence[int],
        loras: Sequence[LoRARequest | None],
        use_tqdm: bool,
        add_special_tokens: bool,
    ) -> list[RequestOutput]:
        ids: list[str] = []
        try:
            for i, job in enumerate(zip(prompts, params, priorities, loras, strict=True)):
                ids.append(self._add(i, *job, add_special_tokens=add_special_tokens))
            done = self._finish_all(set(ids), use_tqdm)
        except BaseException:  # Ctrl-C included: nothing of this call may stay behind
            for request_id in ids:
                self.engine.abort(request_id)
            raise
        return [done[request_id] for request_id in ids]

    def _add(
        self,
        i: int,
        prompt: Prompt,
        params: SamplingParams,
        priority: int,
        lora: LoRARequest | None,
        *,
        add_special_tokens: bool,
    ) -> str:
        options: dict[str, Any] = {"priority": priority, "add_special_tokens": add_special_tokens}
        try:
            return self.engine.add_request(prompt, params, **options, lora=self._loaded(lora))
        except RequestError as error:
            raise RequestError(f"prompt {i}: {error}") from None

    def _loaded(self, lora: LoRARequest | None) -> str | None:
        """The name of an adapter, which is loaded if it was not; the one used longest ago may have to make room."""
        if lora is None:
            return None
        known = {info.name: info.path for info in self.engine.loras()}
        if not lora.lora_path or known.get(lora.lora_name) == lora.lora_path:
            return lora.lora_name
        return self.engine.add_lora(lora.lora_name, lora.lora_path, replace_idle=True).name

    def _finish_all(self, wanted: set[str], use_tqdm: bool) -> dict[str, RequestOutput]:
        done: dict[str, RequestOutput] = {}
        bar = tqdm(total=len(wanted), desc="prompts", unit="prompt", disable=not use_tqdm, dynamic_ncols=True)
        with bar:
            rates = _Rates()
            while len(done) < len(wanted):
                for output in self.engine.step():
                    if output.finished and output.request_id in wanted:
                        done[output.request_id] = output
                        bar.set_postfix_str(rates.after(output, bar.format_dict["elapsed"]), refresh=False)
                        bar.update()
        return done


def _news(output: RequestOutput, cursors: dict[int, Cursor]) -> Iterator[CompletionOutput]:
    for completion in output.outputs:
        piece = cursors.setdefault(completion.index, Cursor()).advance(completion, CompletionOutput)
        if piece is not None:
            yield piece


class _Rates:
    """Prompt and output tokens per second, for the progress bar."""

    def __init__(self) -> None:
        self._prompt = 0
        self._output = 0

    def after(self, output: RequestOutput, seconds: float) -> str:
        self._prompt += len(output.prompt_token_ids)
        self._output += sum(len(c.token_ids) for c in output.outputs)
        seconds = max(seconds, 1e-9)
        return f"prompt {self._prompt / seconds:.0f} tok/s, output {self._output / seconds:.0f} tok/s"


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt as a list of one. A list of whole numbers is one prompt, as token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts of type {type(prompts).__name__}; accepted: text, token ids, or a list of these")
    many: list[Any] = prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)
    return [many] if many and all(isinstance(item, Integral) for item in many) else many


def _as_conversations(messages: Any) -> list[Any]:
    """One conversation as a list of one."""
    if isinstance(messages, list | tuple) and messages and not isinstance(messages[0], Mapping):
        return list(messages)
    return [messages]
