from __future__ import annotations

import pytest

from helpers_output import FUNCTIONS, SPELLINGS, calls_of
from octavo.sampling_params import SamplingParams
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.output.formats import OutputFormat, reasoning_format, tool_format
from octavo.text.output.router import OutputRouter, read_whole
from octavo.text.output.special import special_markers, with_markers
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_config import TokenizerConfig


class Bytes(Tokenizer):
    """A token for each byte, an end, and special tokens."""

    def __init__(self, special: list[str]) -> None:
        self._special = ["</s>", *special]
        ids = range(256, 256 + len(self._special))
        super().__init__(TokenizerConfig(eos_token="</s>", added_tokens={}), ids, strips_leading_space=False)

    @property
    def vocab_size(self) -> int:
        return 256 + len(self._special)

    def token_to_id(self, token: str) -> int | None:
        return 256 + self._special.index(token) if token in self._special else None

    def id_to_token(self, token_id: int) -> str | None:
        return self._special[token_id - 256] if token_id >= 256 else f"<0x{token_id:02X}>"

    def _write(self, token: str) -> bytes:
        return token.encode() if token in self._special else bytes([int(token[3:5], 16)])

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        for i, token in enumerate(self._special):
            head, found, tail = text.partition(token)
            if found:
                return [*self._encode(head, False), 256 + i, *self._encode(tail, False)]
        return list(text.encode())


SPECIAL = {
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[INST]"],
    "llama3_json": ["<|python_tag|>", "<|eot_id|>"],
    "deepseek_v3": ["<｜tool▁sep｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"],
}


@pytest.mark.parametrize("name", SPECIAL)
def test_markers_that_are_special_tokens_reach_the_router(name: str) -> None:
    """From the text of a model's tokens, as the engine makes it with the parameters that `with_markers` gives."""
    tokenizer, format = Bytes(SPECIAL[name]), OutputFormat(tools=tool_format(name))
    calls = [("get_weather", {"city": "Rom"}), ("clock", {})]
    ids = tokenizer.encode(SPELLINGS[name][-1](calls))
    params = with_markers(SamplingParams(temperature=0.5), format, tokenizer)
    assert params.temperature == 0.5
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
    assert calls_of(read_whole(OutputRouter(format, FUNCTIONS), detokenizer.append(ids))) == calls
    skipped = tokenizer.decode(ids)
    if name != "llama3_json":  # whose bare form is read as well
        assert not calls_of(read_whole(OutputRouter(format, FUNCTIONS), skipped))


def test_only_markers_count() -> None:
    tokenizer = Bytes(["[TOOL_CALLS]", "<think>", "</think>"])
    hermes, mistral = OutputFormat(tools=tool_format("hermes")), OutputFormat(tools=tool_format("mistral"))
    thinking = OutputFormat(reasoning_format("think"))
    assert special_markers(hermes, tokenizer) == special_markers(OutputFormat(), tokenizer) == {}
    assert special_markers(mistral, tokenizer) == {"[TOOL_CALLS]": 257}
    assert special_markers(thinking, tokenizer) == {"<think>": 258, "</think>": 259}
    params = SamplingParams()
    assert with_markers(params, hermes, tokenizer) is params
    assert not with_markers(params, mistral, tokenizer).skip_special_tokens
