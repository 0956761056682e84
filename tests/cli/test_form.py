"""``octavo run`` with a form for its answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers_cli import FAST
from helpers_grammar import PERSON, holds, make_model
from octavo.cli.run import run
from octavo.errors import OctavoError, RequestError, UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("form"))


def call(model: Path | str, *arguments: str) -> Result:
    result = CliRunner().invoke(run, [str(model), "Hello", *FAST, "-t", "1", "--seed", "3", *arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def test_each_option_gives_an_answer_of_its_form(model: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "person.json", tmp_path / "balanced.lark"
    schema.write_text(json.dumps(PERSON))
    grammar.write_text('start: "(" start ")" | "x"')
    assert holds({"json": PERSON}, call(model, "--json-schema", str(schema), "-n", "300").stdout)
    assert holds({"regex": "[a-c]{4}"}, call(model, "--regex", "[a-c]{4}").stdout[:-1])
    assert call(model, "--choice", "yes", "--choice", "no").stdout in ("yes\n", "no\n")
    assert holds({"regex": r"\(*x\)*"}, call(model, "--grammar", str(grammar)).stdout[:-1])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--regex", "a", "--choice", "b"), UsageError, "give one of --json-schema, --regex, --choice, --grammar"),
        (("--json-schema", "/nowhere"), UsageError, "cannot read the JSON schema '/nowhere'"),
        (("--regex", "("), RequestError, "the regex of structured_outputs cannot be used"),
        (("--choice", ""), RequestError, "a list of texts that are not empty"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(arguments: tuple[str, ...], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        call("/nowhere", *arguments)


def test_a_grammar_that_cannot_be_used_is_one_line(model: Path, tmp_path: Path) -> None:
    grammar = tmp_path / "bad.lark"
    grammar.write_text("start: <|nothing|>")
    with pytest.raises(OctavoError, match="the answer failed: the grammar of structured_outputs cannot be used"):
        call(model, "--grammar", str(grammar))
