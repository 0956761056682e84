"""What becomes of a request that the core says is refused."""

from __future__ import annotations

import pytest

from helpers_text import bpe_metadata
from octavo.assemble import Assembler
from octavo.core.plan import Event, Finished, Sampled
from octavo.core.request import Request, token_array
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.text.gguf_tokenizer import tokenizer_from_metadata

TOKENIZER = tokenizer_from_metadata(bpe_metadata())
HALF = next(i for i in range(TOKENIZER.vocab_size) if TOKENIZER.token_bytes(i) == b"\xe2")
"""The token of a byte that begins a character: its text is held back until the character, or the answer, ends."""


def output_after(events: list[Event], **options: object) -> RequestOutput:
    request = Request("r", token_array([3, 4]), SamplingParams(**options), 9)  # type: ignore[arg-type]
    request.metrics.arrival_time = 1.0
    assembler = Assembler(TOKENIZER)
    assembler.add("r", None, [3, 4], [request])
    ((output,), _) = assembler.apply(events)
    assert len(assembler) == 0
    return output


@pytest.mark.parametrize("options", [{}, {"structured_outputs": {"json_object": True}}])
@pytest.mark.parametrize("why", [None, "the model overflowed"])
def test_an_error_is_the_models_whatever_was_asked_for(options: dict[str, object], why: str | None) -> None:
    output = output_after([Finished("r", "error", why)], **options)
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("error", why)
    assert (output.refused, output.finished) == (None, True)


@pytest.mark.parametrize(
    ("options", "kind"), [({}, "request"), ({"structured_outputs": {"json_object": True}}, "form")]
)
def test_a_refusal_is_an_error_that_says_so_and_what_is_to_blame(options: dict[str, object], kind: str) -> None:
    output = output_after([Sampled("r", HALF), Finished("r", "refused", "no token is left")], **options)
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("error", "no token is left")
    assert (output.refused, output.outputs[0].text) == ("no token is left", "\ufffd")
    assert output.refused_kind == kind


def test_a_completion_whose_last_text_is_a_stop_string_is_not_refused() -> None:
    output = output_after([Sampled("r", HALF), Finished("r", "refused", "no token is left")], stop=["\ufffd"])
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "\ufffd")
    assert (output.refused, output.finished) == (None, True)
