"""Forms on a GPU: masks within and without graphs, and the same tokens in any company."""

from __future__ import annotations

import pytest
import torch

from helpers_grammar import ENGINE, FORMS, holds, make_model, mixed_requests
from octavo import LLM

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("forms"))


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_forms_are_kept_beside_plain_requests_and_tokens_are_those_of_each_alone(path, eager, seed):
    prompts, params = zip(*mixed_requests(seed, 24), strict=True)
    with LLM(str(path), **ENGINE, device="cuda", enforce_eager=eager, max_num_seqs=16) as llm:
        together = llm.generate(list(prompts), list(params), use_tqdm=False)
        alone = [llm.generate([p], q, use_tqdm=False)[0] for p, q in zip(prompts, params, strict=True)]
    for one, other, asked in zip(together, alone, params, strict=True):
        assert [c.token_ids for c in one.outputs] == [c.token_ids for c in other.outputs]
        form = asked.structured_outputs
        for completion in one.outputs if form is not None else ():
            given = next(f for f in FORMS if form.kind in f)
            assert completion.finish_reason == "length" or holds(given, completion.text)


def test_greedy_tokens_are_those_of_the_cpu(path):
    work = [(prompt, params) for prompt, params in mixed_requests(5, 24) if params.temperature == 0]
    prompts, params = zip(*work, strict=True)
    found = []
    for device in ("cuda", "cpu"):
        with LLM(str(path), **ENGINE, device=device) as llm:
            outputs = llm.generate(list(prompts), list(params), use_tqdm=False)
            found.append([[c.token_ids for c in output.outputs] for output in outputs])
    assert found[0] == found[1]
