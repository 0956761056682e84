"""The child process of `checked`: translates a form into a grammar and compiles it, under limits.

It compiles in a thread with a small stack. What fits into that does not overflow the larger ones of the engine.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from octavo.grammar.source import explain, grammar_of, parser_limits

CPU_SECONDS = 2.0
MEMORY_BYTES = 1 << 30
STACK_BYTES = 1 << 20


class Bytes:
    """A tokenizer with a token for each byte, and special tokens that a grammar may name; see `TokenizerWrapper`."""

    bos_token_id = None

    def __init__(self, specials: Sequence[str]) -> None:
        self.tokens = [bytes([i]) for i in range(256)] + [name.encode() for name in specials] + [b"<end>"]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.eos_token_id = len(self.tokens) - 1

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@lru_cache(maxsize=4)
def tokenizer_with(specials: tuple[str, ...]) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(Bytes(specials)))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The grammar of one request under "grammar", or what is wrong in one line under "error"."""
    try:
        grammar = grammar_of(request["kind"], request["value"], request["compact"])
    except (ValueError, RecursionError) as error:
        return {"error": explain(str(error))}
    except MemoryError:
        return {"error": "it needs too much memory"}
    tokenizer = tokenizer_with(tuple(request["specials"]))
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return {"error": explain(matcher.get_error())}
    return {"grammar": grammar}


def limit_memory() -> None:
    """Cap the address space, where the system can."""
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def answer_lines() -> None:
    """Answer lines until the input ends. The timer's signal ends the process, even amid native code."""
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        reply = json.dumps(answer(json.loads(line))).encode("ascii")
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    limit_memory()
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=answer_lines)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
