from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers_output import FUNCTIONS, SPELLINGS, Call, calls_of, make_router, route
from octavo.text.output.formats import TOOLS, OutputFormat, reasoning_format, tool_format
from octavo.text.output.pieces import Content, Reasoning, ToolArguments, ToolCallEnd, ToolCallStart
from octavo.text.output.router import OutputRouter, begins_in_reasoning, read_whole
from octavo.text.output.source import MAX_HELD, MAX_SPACE

SPELLED = [(name, spell) for name, spellings in SPELLINGS.items() for spell in spellings]
IDS = [f"{name}-{i}" for name, spellings in SPELLINGS.items() for i in range(len(spellings))]

STRINGS = st.text(max_size=12) | st.sampled_from(['a"b', "x}", "{[(", "\\", "'", "it's", "</tool_call", "\n\n", "é😀"])
ARGUMENTS = st.fixed_dictionaries(
    {"city": STRINGS},
    optional={
        "days": st.integers(-5, 5),
        "tags": st.lists(st.booleans() | st.none() | st.integers(0, 9) | STRINGS, max_size=3),
    },
)
CALLS = st.lists(
    st.tuples(st.just("get_weather"), ARGUMENTS) | st.tuples(st.just("clock"), st.just({})), min_size=1, max_size=3
)
CUTS = st.lists(st.integers(0, 400), max_size=40)


def cut(text: str, places: list[int]) -> list[str]:
    """``text`` in pieces, of which some may be empty."""
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def is_ambiguous(format: str, calls: list[Call]) -> bool:
    """Whether the format itself cannot say these values: a string with a closing tag in it, or line breaks around."""
    if format not in ("qwen3_coder", "glm45"):
        return False
    texts = [arguments.get("city", "") for _, arguments in calls]
    return any("</" in text or text != text.strip("\n") for text in texts)


# ---------------------------------------------------------------- well-formed


@pytest.mark.parametrize(("format", "spell"), SPELLED, ids=IDS)
@settings(max_examples=25, deadline=None)
@given(calls=CALLS, places=CUTS)
def test_calls_come_out_as_they_were_meant(format: str, spell: Any, calls: list[Call], places: list[int]) -> None:
    assume(not is_ambiguous(format, calls))
    text = spell(calls)
    whole = route([text], format)
    assert calls_of(whole) == calls
    assert not [piece for piece in whole if isinstance(piece, Content)]
    assert route(cut(text, places), format) == whole
    assert route(text, format) == whole  # a character at a time


@pytest.mark.parametrize(("format", "spell"), SPELLED, ids=IDS)
def test_reasoning_answer_calls_and_an_afterword(format: str, spell: Any) -> None:
    calls = [("get_weather", {"city": "Zürich", "days": 2}), ("clock", {})]
    said = "" if tool_format(format).bare and not tool_format(format).openings else "Let me see."
    if format == "llama3_json" and not spell(calls).startswith("<|python_tag|>"):
        said = ""
    text = f"<think>\nWhich city?\n\n</think>\n\n{said}\n\n{spell(calls)}\nThat is it."
    pieces = route(text, format, "think")
    assert pieces[0] == Reasoning("Which city?")
    assert calls_of(pieces) == calls
    assert [p.text for p in pieces if isinstance(p, Content)] == [*([said] if said else []), "That is it."]


@pytest.mark.parametrize("format", [name for name in SPELLINGS if name not in ("qwen3_coder", "glm45", "pythonic")])
def test_json_arguments_are_passed_on_letter_by_letter(format: str) -> None:
    arguments = {"city": 'a "quoted" \\ town', "tags": [1, {"x": "}"}]}
    written = json.dumps(arguments)
    text, router, told = SPELLINGS[format][0]([("get_weather", arguments)]), make_router(format), ""
    begin = text.index(written)
    for i, char in enumerate(text):
        for piece in router.feed(char):
            if isinstance(piece, ToolArguments):
                told += piece.text
        assert told == text[begin : max(begin, min(i + 1, begin + len(written)))]


def test_strings_between_tags_stream_too() -> None:
    router = make_router("qwen3_coder")
    first = router.feed("<tool_call><function=get_weather><parameter=city>\nNew York")
    assert "".join(piece.text for piece in first if isinstance(piece, ToolArguments)) == '{"city": "New York'


# ---------------------------------------------------------------- any text

FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]abc", "; "),
    *("<function=get_weather>", "<parameter=city>", "</parameter>", "</function>", "<arg_key>city</arg_key>"),
    *("<arg_value>", "</arg_value>", "<|python_tag|>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function"),
    *("<｜tool▁sep｜>", "```json", "```", "<｜tool▁call▁end｜>", "functions.clock:0", "<|tool_call_argument_begin|>"),
    *("<|tool_call_begin|>", "<|tool_call|>", '{"name": "get_weather"', ', "arguments": ', ', "parameters": {"a": 1}}'),
    *('{"city": "x"}', "}", "{", "[", "]", ",", '"', "'", "\\", '"arguments": {"a": ', '"name": "clock"', "clock"),
    *("get_weather(city=", "clock()", ")", " ", "\n", "  \n", "Hello", " world.", "null", '"{\\"a\\": 1}"', "é"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)


@pytest.mark.parametrize("format", [format.name for format in TOOLS])
@settings(max_examples=70, deadline=None)
@given(text=TEXTS, places=CUTS, thinking=st.booleans())
def test_where_the_text_is_cut_does_not_matter(format: str, text: str, places: list[int], thinking: bool) -> None:
    whole = route([text], format, "think", in_reasoning=thinking)
    assert route(cut(text, places), format, "think", in_reasoning=thinking) == whole
    assert route(text, format, "think", in_reasoning=thinking) == whole


@pytest.mark.parametrize("format", [format.name for format in TOOLS])
@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_nothing_is_lost_where_there_is_no_call(format: str, text: str) -> None:
    pieces = route([text], format)
    if not any(isinstance(piece, ToolCallStart) for piece in pieces):
        assert pieces == ([Content(text)] if text else [])


@pytest.mark.parametrize("format", [format.name for format in TOOLS])
@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_pieces_are_in_order(format: str, text: str) -> None:
    """Calls are numbered, do not overlap, and each has its start and its end; no piece is empty."""
    open_call, count = None, 0
    for piece in route(text, format, "think"):
        if isinstance(piece, ToolCallStart):
            assert (open_call, piece.index) == (None, count)
            open_call, count = piece.index, count + 1
        elif isinstance(piece, ToolArguments | ToolCallEnd):
            assert piece.index == open_call
            open_call = None if isinstance(piece, ToolCallEnd) else open_call
        else:
            assert open_call is None
        assert not hasattr(piece, "text") or piece.text
    assert open_call is None


# ---------------------------------------------------------------- what is no call, and what breaks off


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("hermes", "The tag <tool_call> begins a call."),
        ("hermes", '<tool_call>\n{"name": "rm_rf", "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "clock", "arguments": "no object"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "clock", "argum'),
        ("hermes", "<tool_call>{'name': 'clock'}</tool_call>"),
        ("hermes", "<tool_call>[]</tool_call>"),
        ("hermes", "  \n <tool"),
        ("llama3_json", '{"name": "Bob", "age": 3}'),
        ("llama3_json", '{"name": "clock"}'),
        ("llama3_json", '<|python_tag|>brave_search.call(query="x")'),
        ("llama3_json", 'I would say {"name": "clock", "parameters": {}}'),
        ("json", '{"answer": {"name": "clock", "arguments": {}}}'),
        ("json", "[1] says so"),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("mistral", "[TOOL_CALLS]get_time{}"),
        ("qwen3_coder", "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
        ("kimi_k2", "<|tool_calls_section_begin|> and so on"),
        ("pythonic", "[clock, get_weather]"),
        ("pythonic", "[unknown(x=1)]"),
    ],
)
def test_what_is_no_call_is_content_to_the_letter(format: str, text: str) -> None:
    assert route(text, format) == [Content(text)]


@pytest.mark.parametrize("functions", [None, FUNCTIONS])
def test_unknown_names_pass_only_where_none_are_known(functions: Any) -> None:
    pieces = route('<tool_call>{"name": "other", "arguments": {}}</tool_call>', "hermes", functions=functions)
    assert isinstance(pieces[0], Content if functions else ToolCallStart)


def test_without_functions_nothing_is_a_call() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n'
    assert route(text, "hermes", functions=()) == [Content(text)]


@pytest.mark.parametrize(
    ("format", "text", "arguments"),
    [
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Par', '{"city": "Par'),
        ("mistral", '[TOOL_CALLS]get_weather{"city": "a\\', '{"city": "a\\'),
        ("qwen3_coder", "<tool_call><function=get_weather><parameter=city>\nPar \n", '{"city": "Par \\n'),
        ("pythonic", "[get_weather(days=3, city='Pa", '{"days": 3'),
    ],
)
def test_a_call_that_is_cut_off_stays_one_and_is_incomplete(format: str, text: str, arguments: str) -> None:
    pieces = route(text, format)
    assert pieces[0] == ToolCallStart(0, "id0", "get_weather")
    assert pieces[1] == ToolArguments(0, arguments)
    assert pieces[2] == ToolCallEnd(0, False)


def test_brackets_that_do_not_match_end_the_call() -> None:
    pieces = route('<tool_call>{"name": "clock", "arguments": {"a": ]} x', "hermes")
    assert pieces[1:] == [ToolArguments(0, '{"a": '), ToolCallEnd(0, False), Content("]} x")]


@pytest.mark.parametrize("end", ["", "\n</tool_call>", "\n"])
def test_a_missing_end_marker_is_not_missed(end: str) -> None:
    pieces = route('<tool_call>{"name": "clock", "arguments": {}}' + end, "hermes")
    assert pieces == [ToolCallStart(0, "id0", "clock"), ToolArguments(0, "{}"), ToolCallEnd(0, True)]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('"name": "clock", "arguments": null', "{}"),
        ('"name": "clock"', "{}"),
        ('"name": "clock", "arguments": "{\\"a\\": 1}"', '{"a": 1}'),
        ('"arguments": {"a": 1}, "name": "clock"', '{"a": 1}'),
        ('"type": "function", "id": 7, "name": "clock", "arguments": {}, "more": [{}]', "{}"),
    ],
)
def test_ways_to_write_arguments(written: str, arguments: str) -> None:
    pieces = route("<tool_call>{" + written + "}</tool_call>", "hermes")
    assert pieces == [ToolCallStart(0, "id0", "clock"), ToolArguments(0, arguments), ToolCallEnd(0, True)]


def test_only_the_first_of_several_calls() -> None:
    calls: list[Call] = [("clock", {}), ("get_weather", {"city": "x"})]
    for format, spell in SPELLED:
        assert calls_of(route(spell(calls), format, parallel=False)) == calls[:1]


# ---------------------------------------------------------------- reasoning


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, "hm", "Yes."),
        ("hm\n</think>\n\nYes.", True, "hm", "Yes."),
        ("<think>hm</think>Yes.", True, "hm", "Yes."),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>never ends ", False, "never ends ", ""),
        ("The tag <think> is not </think> at the start.", False, "", "The tag <think> is not </think> at the start."),
        ("<think>a</think><think>b</think>", False, "a", "<think>b</think>"),
        (" \n<thin", False, "", " \n<thin"),
        ("", True, "", ""),
    ],
)
def test_reasoning_stands_at_the_beginning(text: str, opened: bool, reasoning: str, content: str) -> None:
    expected = [*([Reasoning(reasoning)] if reasoning else []), *([Content(content)] if content else [])]
    assert route(text, None, "think", in_reasoning=opened) == expected
    assert route([text], "hermes", "think", in_reasoning=opened) == expected


def test_a_call_within_reasoning_is_reasoning() -> None:
    text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    assert route(text, "hermes", "think", in_reasoning=True) == [Reasoning(text)]


def test_the_prompt_may_open_reasoning() -> None:
    format = OutputFormat(reasoning_format("think"))
    assert begins_in_reasoning("<|im_start|>assistant\n<think>\n", format)
    assert not begins_in_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n", format)
    assert not begins_in_reasoning("<|im_start|>assistant\n<think>\n", OutputFormat())


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("length", [0, 1, MAX_SPACE - 1, MAX_SPACE, MAX_SPACE + 5])
def test_white_space_belongs_to_a_marker_up_to_a_limit(length: int) -> None:
    space = "\n" * length
    text = f'a{space}<tool_call>{{"name": "clock"}}</tool_call>{space}b'
    over = "\n" * max(0, length - MAX_SPACE)
    for deltas in ([text], list(text)):
        pieces = route(deltas, "hermes")
        assert [piece.text for piece in pieces if isinstance(piece, Content)] == ["a" + over, over + "b"]


def told_characters(router: OutputRouter, text: str) -> int:
    return sum(len(piece.text) for piece in router.feed(text) if hasattr(piece, "text"))


@pytest.mark.parametrize(
    ("format", "start", "more"),
    [
        ("hermes", '<tool_call>{"name": "clock", "arguments": {"a": "', "abc" * 100),
        ("hermes", '<tool_call>{"arguments": {"a": "', "abc" * 100),
        ("hermes", '<tool_call>{"name": "', "abc" * 100),
        ("hermes", "<tool_call>", " \n" * 100),
        ("mistral", "[TOOL_CALLS]", "ab" * 100),
        ("qwen3_coder", "<tool_call><function=get_weather><parameter=city>", "abc" * 100),
        ("qwen3_coder", "<tool_call><function=get_weather><parameter=days>", "123" * 100),
        ("qwen3_coder", "<tool_call><function=get_weather><parameter=", "abc" * 100),
        ("pythonic", "[get_weather(city='", "abc" * 100),
        ("llama3_json", '{"id": [', "[" * 300),
        ("hermes", "<think>", " \n" * 100),
    ],
)
def test_what_is_held_is_bounded(format: str, start: str, more: str) -> None:
    router, fed, told = make_router(format, "think"), len(start), told_characters(make_router(format, "think"), "")
    told += told_characters(router, start)
    for _ in range(600):
        fed += len(more)
        told += told_characters(router, more)
        assert fed - told <= MAX_HELD + len(start) + len(more)


def test_a_held_value_fails_at_the_same_character_however_it_came() -> None:
    text = '<tool_call>{"arguments": {"a": "' + "x" * (MAX_HELD + 10) + '"}, "name": "clock"}</tool_call>'
    assert route([text], "hermes") == route(cut(text, list(range(0, len(text), 1000))), "hermes") == [Content(text)]


@pytest.mark.parametrize("nasty", ["[" * 5000, "-" * 5000, "(" * 5000, "1+" * 5000 + "1", "9" * 5000, "{1:" * 3000])
def test_hostile_python_is_no_call(nasty: str) -> None:
    pieces = route([f"[get_weather(city={nasty})]"], "pythonic")
    assert isinstance(pieces[0], ToolCallStart)
    assert any(isinstance(piece, ToolCallEnd) for piece in pieces)


@pytest.mark.parametrize("format", TOOLS, ids=lambda format: format.name)
def test_no_opening_begins_with_another(format: Any) -> None:
    for a in format.openings:
        assert not any(a != b and b.startswith(a) for b in format.openings)


def test_made_ids_suit_the_format() -> None:
    def made(name: str) -> str:
        text = SPELLINGS[name][0]([("clock", {})])
        start = OutputRouter(OutputFormat(tools=tool_format(name)), FUNCTIONS).feed(text)[0]
        assert isinstance(start, ToolCallStart)
        return start.id

    assert made("hermes").startswith("call_")
    assert made("hermes") != made("hermes")
    assert len(made("mistral")) == 9
    assert made("mistral").isalnum()
    assert made("kimi_k2") == "functions.clock:0"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_only_python_takes_for_json_is_a_string(number: str) -> None:
    text = f"<tool_call>\n<function=get_weather>\n<parameter=days>\n{number}\n</parameter>\n</function>\n</tool_call>"
    pieces = read_whole(OutputRouter(OutputFormat(None, tool_format("qwen3_coder")), FUNCTIONS), text)
    arguments = "".join(piece.text for piece in pieces if isinstance(piece, ToolArguments))
    assert msgspec.json.decode(arguments) == {"days": number}
