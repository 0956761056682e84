"""The ways in which models write tool calls and reasoning, as values. A model has one of each, or none."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import UsageError, nearest
from octavo.text.output.calls import CallShape
from octavo.text.output.json_calls import JsonShape
from octavo.text.output.named_calls import NamedShape
from octavo.text.output.python_calls import PythonShape
from octavo.text.output.tagged_calls import TaggedShape


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """Reasoning stands at the beginning, between two markers."""

    name: str
    start: str
    end: str

    @property
    def markers(self) -> tuple[str, ...]:
        return (self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """Tool calls stand between markers, which are given as they are written; read, white space in them stands for any.

    Attributes:
        start: before a call, or before a list of calls.
        ends: after it. What is missing of these is not missed.
        section: before the first and after the last of all calls.
        bare: a call may stand without ``start``, at the beginning of the answer or behind another call.
        between: what is written between two calls; None: only one is written.
        shape: how a call itself is spelled.
        signs: a chat template of this format contains all of these.
        id_letters: made ids have so many letters and digits, as the templates demand; 0: they are of OpenAI's form.
    """

    name: str
    start: str = ""
    ends: tuple[str, ...] = ()
    section: tuple[str, str] = ("", "")
    bare: bool = False
    between: str | None = ""
    shape: CallShape
    signs: tuple[str, ...]
    id_letters: int = 0

    @property
    def openings(self) -> tuple[str, ...]:
        """The markers that begin calls, as they are read."""
        return tuple(marker.strip() for marker in (self.section[0], self.start) if marker)

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts of which special tokens may be a part."""
        return (*self.section, self.start, *self.ends, *self.shape.markers)


@dataclass(frozen=True)
class OutputFormat:
    """How a model writes reasoning and tool calls; None where it does not."""

    reasoning: ReasoningFormat | None = None
    tools: ToolFormat | None = None


REASONING = (
    ReasoningFormat(name="think", start="<think>", end="</think>"),
    ReasoningFormat(name="mistral", start="[THINK]", end="[/THINK]"),
    ReasoningFormat(name="seed", start="<seed:think>", end="</seed:think>"),
    ReasoningFormat(name="kimi", start="◁think▷", end="◁/think▷"),
)

_NAME = r"(?P<name>[\w.-]+)"
_MISTRAL_HEAD = rf"{_NAME}\s*(?:\[CALL_ID\](?P<id>\w+))?\s*(?:\[ARGS\])?"

TOOLS = (
    ToolFormat(
        name="qwen3_coder",
        start="<tool_call>\n",
        ends=("\n</tool_call>",),
        between="\n",
        shape=TaggedShape(
            head=("<function=", ">\n"), tag=("<parameter=", ">\n", "\n</parameter>\n"), end="</function>"
        ),
        signs=("<function=", "<parameter="),
    ),
    ToolFormat(
        name="glm45",
        start="<tool_call>",
        ends=("</tool_call>",),
        between="\n",
        shape=TaggedShape(head=("", "\n"), tag=("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")),
        signs=("<tool_call>", "<arg_key>"),
    ),
    ToolFormat(
        name="deepseek_v3",
        start="<｜tool▁call▁begin｜>",
        ends=("\n```", "<｜tool▁call▁end｜>"),
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        between="\n",
        shape=NamedShape(rf"function<｜tool▁sep｜>{_NAME}\s*```json", "function<｜tool▁sep｜>{name}\n```json\n"),
        signs=("<｜tool▁calls▁begin｜>", "```json"),
    ),
    ToolFormat(
        name="deepseek_v31",
        start="<｜tool▁call▁begin｜>",
        ends=("<｜tool▁call▁end｜>",),
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        shape=NamedShape(rf"{_NAME}\s*<｜tool▁sep｜>", "{name}<｜tool▁sep｜>"),
        signs=("<｜tool▁calls▁begin｜>",),
    ),
    ToolFormat(
        name="kimi_k2",
        start="<|tool_call_begin|>",
        ends=("<|tool_call_end|>",),
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        shape=NamedShape(
            rf"(?P<id>(?:functions\.)?{_NAME}:\d+)\s*<\|tool_call_argument_begin\|>",
            "functions.{name}:{index}<|tool_call_argument_begin|>",
        ),
        signs=("<|tool_call_argument_begin|>",),
    ),
    ToolFormat(
        name="mistral_args",
        start="[TOOL_CALLS]",
        shape=NamedShape(_MISTRAL_HEAD, "{name}[ARGS]"),
        signs=("[TOOL_CALLS]", "[ARGS]"),
        id_letters=9,
    ),
    ToolFormat(
        name="mistral",
        start="[TOOL_CALLS]",
        between=None,
        shape=NamedShape(_MISTRAL_HEAD, None),
        signs=("[TOOL_CALLS]",),
        id_letters=9,
    ),
    ToolFormat(
        name="phi4_mini_json",
        start="<|tool_call|>",
        ends=("<|/tool_call|>",),
        between=None,
        shape=JsonShape(as_list=True),
        signs=("<|/tool|>",),
    ),
    ToolFormat(
        name="granite",
        start="<|tool_call|>",
        between=None,
        shape=JsonShape(as_list=True),
        signs=("<|tool_call|>",),
    ),
    ToolFormat(
        name="hermes",
        start="<tool_call>\n",
        ends=("\n</tool_call>",),
        between="\n",
        shape=JsonShape(),
        signs=("<tool_call>",),
    ),
    ToolFormat(
        name="pythonic",
        bare=True,
        between=None,
        shape=PythonShape(),
        signs=("func_name1(params_name1=params_value1",),
    ),
    ToolFormat(
        name="llama3_json",
        start="<|python_tag|>",
        bare=True,
        between=None,
        shape=JsonShape(arguments="parameters", needs_arguments=True),
        signs=("<|start_header_id|>", '"parameters": '),
    ),
    ToolFormat(
        name="json",
        bare=True,
        between=None,
        shape=JsonShape(needs_arguments=True),
        signs=(),
    ),
)
"""Of two formats that a template may be of, the first is meant. The last is what a model is told to write if
its template knows of no tools; see `octavo.text.tools_prompt`."""

_TOOL_ALIASES = {
    "llama": "llama3_json",
    "llama3": "llama3_json",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "olmo3": "pythonic",
    "qwen": "hermes",
    "qwen3": "hermes",
    "qwen3_xml": "qwen3_coder",
    "glm47": "glm45",
    "generic": "json",
}
_REASONING_ALIASES = {
    "deepseek_r1": "think",
    "deepseek_v3": "think",
    "qwen3": "think",
    "glm45": "think",
    "holo2": "think",
    "ernie45": "think",
    "seed_oss": "seed",
    "magistral": "mistral",
}


def tool_format(name: str) -> ToolFormat:
    """The format of that name, or of vLLM's name for it.

    Raises:
        UsageError: there is none; the message lists those that there are.
    """
    by_name = {known.name: known for known in TOOLS}
    found = by_name.get(_TOOL_ALIASES.get(name, name))
    if found is None:
        raise UsageError(_unknown("tool-call format", name, [*by_name, *_TOOL_ALIASES]))
    return found


def reasoning_format(name: str) -> ReasoningFormat:
    """The format of that name, or of vLLM's name for it; raises as `tool_format` does."""
    by_name = {known.name: known for known in REASONING}
    found = by_name.get(_REASONING_ALIASES.get(name, name))
    if found is None:
        raise UsageError(_unknown("reasoning format", name, [*by_name, *_REASONING_ALIASES]))
    return found


def _unknown(what: str, name: str, known: list[str]) -> str:
    return f"there is no {what} {name!r:.80}{nearest(str(name), known)}; accepted: auto, none, {', '.join(known)}"
