"""``octavo run``: stream one answer, or chat."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.form import form_options, split_form
from octavo.cli.interrupt import interrupts_between_steps
from octavo.cli.options import engine_options, load, lora_option, read_text_file, split_engine_options
from octavo.cli.shown import ShownAnswer
from octavo.errors import OctavoError, RequestError, UsageError
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.text.named_templates import TEMPLATES
from octavo.text.output.detect import output_format
from octavo.text.output.formats import OutputFormat
from octavo.text.output.router import OutputRouter, begins_in_reasoning
from octavo.text.output.special import with_markers
from octavo.text.template_process import start_template_process

if TYPE_CHECKING:
    from octavo.llm import LLM

Message = dict[str, str]

CHAT_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."
DEFAULT_MAX_TOKENS = 512
_NAMED = " or ".join(TEMPLATES)


@click.command(no_args_is_help=True)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-n", "--max-tokens", type=int, metavar="N", help=f"At most N tokens [{DEFAULT_MAX_TOKENS}].")
@click.option("-t", "--temperature", type=float, help="0 is greedy [the model's own, or 0].")
@click.option("--top-p", type=float, help="Sample from the likeliest tokens that reach this probability.")
@click.option("--top-k", type=int, help="Sample from the K likeliest tokens.")
@click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest one's probability.")
@click.option("--repetition-penalty", type=float, help="Above 1: against repetition.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End at this text; may be given several times.")
@click.option("--raw", is_flag=True, help="Complete the prompt as it stands, without the chat template.")
@click.option("--system", metavar="TEXT", help="A system message for the chat template.")
@click.option("--chat-template", metavar="FILE", help=f"A Jinja chat template instead of the model's own, or {_NAMED}.")
@lora_option
@form_options
@engine_options
def run(
    model: str,
    prompt: str | None,
    raw: bool,
    system: str | None,
    chat_template: str | None,
    loras: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Stream an answer to PROMPT ("-" reads it from standard input), or chat if there is none."""
    if raw and (prompt is None or system or chat_template):
        raise UsageError("--raw takes a prompt, and neither --system nor --chat-template")
    if len(loras) > 1:
        raise UsageError(f"{len(loras)} adapters are given; accepted: one --lora, which all answers have")
    given = split_engine_options(options)
    if chat_template is not None:
        is_name = chat_template in TEMPLATES
        given["chat_template"] = chat_template if is_name else read_text_file("the chat template", chat_template)
    form = split_form(options)
    chosen = {name: value for name, value in options.items() if value not in (None, ())}
    if "stop" in chosen:
        chosen["stop"] = list(chosen["stop"])
    if form is not None:
        chosen["structured_outputs"] = form
    SamplingParams(**chosen)  # so that a mistake is told before the model is loaded
    if sys.stdin is None and prompt in (None, "-"):
        raise UsageError("standard input is closed; give the prompt as an argument")
    if prompt == "-":
        prompt = sys.stdin.read()
    if not raw:
        start_template_process()  # beside the loading
    with load(model, given, loras) as llm:
        if not raw:
            _require_template(llm)
        sampling = {"temperature": 0.0, **llm.engine.generation, **chosen}
        talk = _Talk(llm, sampling, "max_tokens" in chosen, lora=loras[0][0] if loras else None)
        if prompt is None:
            _chat(talk, system)
        else:
            talk.answer(prompt if raw else _conversation(system, prompt))


def _require_template(llm: LLM) -> None:
    if llm.config.chat_template is None and (llm.tokenizer is None or llm.tokenizer.chat_template is None):
        raise UsageError("the model has no chat template; give --raw and a prompt, or --chat-template FILE")


def _conversation(system: str | None, prompt: str) -> list[Message]:
    start = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": prompt}]


class _Talk:
    """A model and how to sample from it: streams answers, with a line of figures after each."""

    def __init__(self, llm: LLM, options: dict[str, Any], fixed_length: bool, lora: str | None = None) -> None:
        self._llm = llm
        self._lora = lora
        self._options = options
        self._fixed_length = fixed_length

    def answer(self, prompt: str | list[Message]) -> Message:
        """Stream one answer to standard output and its figures to standard error; return it as a message."""
        engine = self._llm.engine
        text = prompt if isinstance(prompt, str) else self._llm.render(prompt)
        token_ids = engine.encode(text, add_special_tokens=isinstance(prompt, str))
        format = OutputFormat() if isinstance(prompt, str) else self._format
        request_id = engine.add_request(token_ids, self._params_for(len(token_ids), format), lora=self._lora)
        router = OutputRouter(format, in_reasoning=begins_in_reasoning(text, format))
        shown, length = ShownAnswer(router, sys.stdout.isatty()), 0
        try:
            with contextlib.closing(self._follow(request_id)) as outputs:
                for output in outputs:
                    shown.feed(output.outputs[0].text[length:])
                    length = len(output.outputs[0].text)
            shown.finish()
        finally:
            click.echo()
        if output.outputs[0].finish_reason == "error":
            raise OctavoError(f"the answer failed: {output.outputs[0].stop_reason}")
        click.secho(_figures(output), err=True, dim=True)
        return {"role": "assistant", "content": shown.content, "reasoning_content": shown.reasoning}

    @property
    def _format(self) -> OutputFormat:
        """How the model reasons. Calls are not looked for, as there are no tools."""
        tokenizer = self._llm.tokenizer
        return output_format(self._llm.config.chat_template or tokenizer.chat_template, tools="none")

    def _follow(self, request_id: str) -> Generator[RequestOutput, None, None]:
        """Step until the request is finished; Ctrl-C or closing the iterator aborts it."""
        engine, finished = self._llm.engine, False
        try:
            with interrupts_between_steps() as check:
                while not finished:
                    check()
                    for output in engine.step():
                        if output.request_id == request_id:
                            finished = output.finished
                            yield output
        finally:
            engine.abort(request_id)

    def _params_for(self, prompt_length: int, format: OutputFormat) -> SamplingParams:
        """Without a length of the user's own, the default one is cut to what fits behind the prompt."""
        room = self._llm.engine.scheduler.token_limit - prompt_length
        length = {} if self._fixed_length or room < 1 else {"max_tokens": min(DEFAULT_MAX_TOKENS, room)}
        params = SamplingParams(**(self._options | length))
        return params if self._llm.tokenizer is None else with_markers(params, format, self._llm.tokenizer)


def _figures(output: RequestOutput) -> str:
    """Prompt and output tokens, time to the first, rate of the others, KV blocks."""
    m, count = output.metrics, sum(len(c.token_ids) for c in output.outputs)
    cached = f" ({m.num_cached_tokens} cached)" if m.num_cached_tokens else ""
    parts = [f"prompt {len(output.prompt_token_ids)} tokens{cached}", f"{count} tokens"]
    if m.time_to_first_token is not None:
        parts.append(f"first after {m.time_to_first_token:.2f} s")
    if m.first_token_time is not None and m.finished_time is not None and count > 1:
        parts.append(f"then {(count - 1) / max(m.finished_time - m.first_token_time, 1e-9):.1f} tokens/s")
    return " · ".join([*parts, f"{m.num_blocks} KV blocks"])


def _chat(talk: _Talk, system: str | None) -> None:
    """Read lines and answer them until the input ends. The prefix cache makes a long history cheap."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    click.secho(CHAT_HELP, err=True, dim=True)
    history: list[Message] = []
    while (line := _read_line()) is not None:
        if line == "/reset":
            history = []
            click.secho("The conversation is forgotten.", err=True, dim=True)
        elif line.startswith("/"):
            click.secho(f"{line.split()[0]} is not a command. {CHAT_HELP}", err=True, dim=True)
        elif line:
            history = _turn(talk, history or _conversation(system, "")[:-1], line)


def _turn(talk: _Talk, history: list[Message], line: str) -> list[Message]:
    """Answer one line; a turn that failed or was stopped is not part of the history that is returned."""
    turn: list[Message] = [*history, {"role": "user", "content": line}]
    try:
        return [*turn, talk.answer(turn)]
    except KeyboardInterrupt:
        click.secho("Stopped; this turn is forgotten.", err=True, dim=True)
    except RequestError as error:
        click.secho(f"{error}. /reset starts anew.", err=True)
    return history


def _read_line() -> str | None:
    """The next line, stripped; None at the end of input, at /exit and at Ctrl-C."""
    try:
        line = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        click.echo(err=True)
        return None
    return None if line in ("/exit", "/quit") else line
