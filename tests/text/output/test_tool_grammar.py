from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from helpers_output import CLOCK, FUNCTIONS, SPELLINGS, calls_of
from octavo.text.output.calls import Function
from octavo.text.output.choice import ToolUse
from octavo.text.output.formats import TOOLS, OutputFormat, reasoning_format, tool_format
from octavo.text.output.grammar import call_grammar
from octavo.text.output.pieces import Content, Piece, Reasoning, ToolCallStart, joined
from octavo.text.output.router import OutputRouter

ORDER = Function(
    "place-order",
    {
        "type": "object",
        "properties": {
            "size": {"type": "string", "enum": ["S", 'X "L"']},
            "note": {"type": "string"},
            "count": {"type": "integer", "minimum": 1, "maximum": 9},
            "to": {"$ref": "#/$defs/Address"},
            "gift": {"type": ["boolean", "null"]},
        },
        "required": ["count", "size"],
        "additionalProperties": False,
        "$defs": {"Address": {"type": "object", "properties": {"zip": {"pattern": "^[0-9]{4}$", "type": "string"}}}},
    },
)
ANYTHING = Function("anything", {"type": "object"})


class Bytes:
    """A vocabulary of all bytes, an end, and special tokens; see llguidance's ``TokenizerWrapper``."""

    bos_token_id = None
    eos_token_id = 256

    def __init__(self, special: Sequence[str]) -> None:
        self.tokens = [bytes([i]) for i in range(256)] + [b"<end>"] + [name.encode() for name in special]
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


ENDS = [b"\n</parameter>\n", b"</arg_value>\n", b"</think>"]
"""What ends the free texts in grammars; it would take long to be written by chance."""


class Writer:
    """Writes random texts of a grammar."""

    def __init__(self, grammar: str, special: Sequence[str], seed: int) -> None:
        self._forced: list[int] = []
        self._vocabulary = Bytes(special)
        tokenizer = LLTokenizer(TokenizerWrapper(self._vocabulary))
        self._matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar))
        assert not self._matcher.is_error(), self._matcher.get_error()
        self._random = random.Random(seed)

    def write(self) -> str:
        ids: list[int] = []
        while (token := self._choose(len(ids))) is not None:
            assert self._matcher.consume_token(token)
            ids.append(token)
            assert len(ids) < 3000, b"".join(self._vocabulary.tokens[i] for i in ids)[-300:]
        return b"".join(self._vocabulary.tokens[i] for i in ids).decode()

    def _choose(self, length: int) -> int | None:
        """A token; the longer the text, the rather one that ends something."""
        allowed = set(self._allowed())
        if len(allowed) > 150 and not self._forced and self._random.random() < 0.1:
            self._forced = [*self._random.choice(ENDS)]
        if self._forced and self._forced[0] in allowed:
            return self._forced.pop(0)
        self._forced = []
        if 256 in allowed and (self._random.random() < 0.3 or length > 1500 or len(allowed) == 1):
            return None
        allowed -= {256}
        ends = allowed & {*b'"}])<>/\\', *range(257, 300)}
        plain = allowed & set(range(32, 127))
        if ends and (length > 300 or self._random.random() < 0.2):
            return self._random.choice(sorted(ends))
        return self._random.choice(sorted(plain or allowed - set(range(128, 256)) or allowed))

    def _allowed(self) -> list[int]:
        bits = self._matcher.compute_bitmask()
        return [i for i in range(len(self._vocabulary.tokens)) if bits[i // 8] >> i % 8 & 1]


def read(text: str, format: OutputFormat, functions: Sequence[Function], **options: Any) -> list[Piece]:
    router, pieces = OutputRouter(format, functions, **options), list[Piece]()
    for piece in (*router.feed(text), *router.finish()):
        joined(pieces, piece)
    return pieces


def markers_of(name: str) -> list[str]:
    """The format's markers that begin and end with brackets, which models have as special tokens."""
    found = re.findall(r"<[^\s<>]+>|\[[A-Z_]+\]", " ".join(tool_format(name).markers))
    return sorted(set(found))


def numbered(special: Sequence[str]) -> Mapping[str, int]:
    return {name: 257 + i for i, name in enumerate(special)}


@pytest.mark.parametrize("are_special", [False, True])
@pytest.mark.parametrize("name", [format.name for format in TOOLS])
def test_what_the_grammar_writes_is_read_as_valid_calls(name: str, are_special: bool) -> None:
    functions = (ORDER, CLOCK) if name in ("qwen3_coder", "glm45", "pythonic") else (ORDER, CLOCK, ANYTHING)
    format, special = OutputFormat(tools=tool_format(name)), markers_of(name) if are_special else []
    grammar = call_grammar(format, ToolUse(functions, required=True), numbered(special))
    assert grammar is not None
    schemas = {function.name: jsonschema_rs.validator_for(function.parameters) for function in functions}
    called = set()
    for seed in range(12):
        text = Writer(grammar, special, seed).write()
        pieces = read(text, format, functions)
        calls = calls_of(pieces)
        assert calls, text
        assert not [piece for piece in pieces if isinstance(piece, Content)], text
        for function, arguments in calls:
            assert schemas[function].is_valid(arguments), (text, arguments)
            called.add(function)
    assert called == set(schemas)


@pytest.mark.parametrize("name", SPELLINGS)
def test_what_models_write_fits_the_grammar(name: str) -> None:
    """Letter by letter, so that nothing but the choice is taken from the model."""
    grammar = call_grammar(OutputFormat(tools=tool_format(name)), ToolUse(FUNCTIONS, required=True), {})
    assert grammar is not None
    calls = [("get_weather", {"city": "Zürich", "days": 3, "tags": [1, "x"]})]
    if tool_format(name).between is not None or tool_format(name).shape.as_list:
        calls.append(("clock", {}))
    vocabulary = Bytes([])
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(vocabulary)), LLMatcher.grammar_from_lark(grammar))
    texts = [spell(calls).replace("'", '"').replace("[TOOL_CALLS] ", "[TOOL_CALLS]") for spell in SPELLINGS[name]]
    ids = [vocabulary(text) for text in texts]
    assert any(matcher.validate_tokens(tokens) == len(tokens) for tokens in ids)


@pytest.mark.parametrize("name", ["hermes", "mistral", "kimi_k2", "pythonic", "json"])
def test_one_call_if_several_are_not_wanted(name: str) -> None:
    format = OutputFormat(tools=tool_format(name))
    grammar = call_grammar(format, ToolUse((CLOCK,), required=True, parallel=False), {})
    assert grammar is not None
    for seed in range(5):
        calls = calls_of(read(Writer(grammar, [], seed).write(), format, FUNCTIONS))
        assert [called for called, _ in calls] == ["clock"]


@pytest.mark.parametrize("special", [[], ["<think>", "</think>"]])
@pytest.mark.parametrize("opened", [False, True])
def test_it_may_reason_first(special: list[str], opened: bool) -> None:
    format = OutputFormat(reasoning_format("think"), tool_format("hermes"))
    grammar = call_grammar(format, ToolUse((CLOCK,), required=True), numbered(special), in_reasoning=opened)
    assert grammar is not None
    kinds = set()
    for seed in range(20):
        text = Writer(grammar, special, seed).write()
        pieces = read(text, format, FUNCTIONS, in_reasoning=opened)
        assert calls_of(pieces[1:] if isinstance(pieces[0], Reasoning) else pieces)
        kinds.add(type(pieces[0]))
    assert Reasoning in kinds
    assert opened or ToolCallStart in kinds


@pytest.mark.parametrize(
    "use", [ToolUse(), ToolUse(FUNCTIONS), ToolUse((), required=True), ToolUse(FUNCTIONS, required=False)]
)
def test_no_grammar_where_no_call_is_required(use: ToolUse) -> None:
    assert call_grammar(OutputFormat(tools=tool_format("hermes")), use, {}) is None


def test_hostile_names_and_schemas_stay_within_their_quotes() -> None:
    function = Function('a"\nstart: /.*/ #', {"type": "object", "properties": {'k"} | "x': {"const": '"\n{'}}})
    for name in ("hermes", "json", "qwen3_coder", "pythonic", "mistral_args"):
        grammar = call_grammar(OutputFormat(tools=tool_format(name)), ToolUse((function,), required=True), {})
        assert grammar is not None
        text = Writer(grammar, [], 0).write()
        assert json.dumps(function.name)[1:-1] in text or function.name in text


@pytest.mark.parametrize(
    ("schema", "is_open", "may_be_list"),
    [
        ({"properties": {"a": {}}}, False, False),
        ({"type": "object", "properties": {"a": {}}}, False, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True, True),
        ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^b": {}}}, True, False),
        ({"type": "object"}, True, False),
        (True, True, False),
        ({}, True, False),
    ],
)
def test_arguments_are_an_object_of_what_is_listed_unless_the_schema_has_more(
    schema: Any, is_open: bool, may_be_list: bool
) -> None:
    grammar = call_grammar(
        OutputFormat(tools=tool_format("json")), ToolUse((Function("f", schema),), required=True), {}
    )
    assert grammar is not None
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(Bytes([]))), LLMatcher.grammar_from_lark(grammar))
    assert matcher.consume_tokens([*b'{"name": "f", "arguments": '])
    assert matcher.validate_tokens([*b"["]) == may_be_list
    assert matcher.consume_tokens([*b'{"'])
    assert matcher.validate_tokens([*b'b": 1']) == (5 if is_open else 0)


@pytest.mark.parametrize("name", [format.name for format in TOOLS])
@pytest.mark.parametrize(
    "schema",
    [{"properties": ["a"]}, {"properties": None, "required": 5}, {"properties": {"a": 5}, "required": "a"}, False],
)
def test_malformed_schemas_are_the_compilers_to_refuse(name: str, schema: Any) -> None:
    use = ToolUse((Function("f", schema),), required=True)
    grammar = call_grammar(OutputFormat(tools=tool_format(name)), use, {})
    assert grammar is not None
    assert "f" in grammar
    spelled = SPELLINGS[name][0]([("f", {"a": 1})])
    assert read(spelled, OutputFormat(tools=tool_format(name)), use.functions)
