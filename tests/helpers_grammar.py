"""A tiny random model that has a tokenizer and an end token, and requests for it that have a form."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema_rs

from helpers_cli import make_chat_model
from octavo import SamplingParams
from octavo.outputs import CompletionOutput

END = 1
"""The id of "</s>"."""

ENGINE: dict[str, Any] = {"dtype": "float32", "debug": True, "kv_cache_memory": 4 << 20, "block_size": 4}


def make_model(folder: Path, *, end: bool = True) -> Path:
    """Write the model; without ``end`` nothing is its end token."""
    path = make_chat_model(folder)
    _change(path / "config.json", eos_token_id=END if end else None)
    if not end:
        _change(path / "tokenizer_config.json", eos_token=None)
    return path


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMS: list[dict[str, Any]] = [
    {"json": PERSON, "disable_any_whitespace": True},
    {"regex": "[a-f]{3}-[0-9]{2,4}"},
    {"choice": ["yes", "no", "no way", "maybe 😀"]},
    {"grammar": 'start: "(" start ")" | /[xy]{1,3}/'},
]

WAYS = 200
TOO_COMPLEX: dict[str, Any] = {
    "grammar": "start: /[b-z]{24}/ s\ns: "
    + " | ".join(f"t{i}" for i in range(WAYS))
    + "".join(f'\nt{i}: "a" t{i} "b" | "a" t{(i + 1) % WAYS} | "a" "a" "a"' for i in range(WAYS))
}
"""It is compiled in no time, and after 24 letters and two times "a" there are more ways to read them than are kept."""


def holds(form: dict[str, Any], text: str) -> bool:
    """Whether ``text`` is what the form says, by other means than a grammar."""
    if "json" in form:
        return jsonschema_rs.is_valid(form["json"], json.loads(text))
    if "regex" in form:
        return re.fullmatch(form["regex"], text) is not None
    if "choice" in form:
        return text in form["choice"]
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return re.fullmatch("[xy]{1,3}", text) is not None


def keeps_form(form: dict[str, Any], completion: CompletionOutput) -> bool:
    """Whether it is finished and of its form; one that was cut off needs only to be short of an end."""
    if completion.finish_reason == "length":
        return completion.token_ids[-1:] != [END]
    return completion.finish_reason == "stop" and holds(form, completion.text)


def mixed_requests(seed: int, count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of token ids; half of the requests have a form, and all kinds of other options."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        options: dict[str, Any] = {"max_tokens": rng.randint(2, 40), "seed": rng.randrange(99)}
        options["temperature"] = rng.choice([0.0, 0.7, 1.5])
        if i % 2:
            options["structured_outputs"] = rng.choice(FORMS)
        if rng.random() < 0.3:
            options |= {"top_p": 0.9, "presence_penalty": 0.5, "repetition_penalty": 1.3}
        if rng.random() < 0.3:
            options["logprobs"] = 2
        if rng.random() < 0.2:
            options["n"] = 2
        prompt = [rng.randrange(10, 500) for _ in range(rng.choice([0, 3, 4, 16, 30]))]
        found.append(([*prompt, 90], SamplingParams(**options)))  # the last one ends no half character
    return found
