"""The regular expressions that cut text into words before byte-level BPE merges inside each.

A GGUF file only names them (``tokenizer.ggml.pre``); the expressions are those of the models' own
``tokenizer.json``.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import ModelError, nearest

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Patterns applied one after the other (each match, and what lies between, is a word of its own).

    ``ignore_merges``: a word that is itself a token is taken whole. ``add_bos_token``: what holds when a file
    is silent.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos_token: bool = False


_KINDS = {
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")): ("default",),
    PreTokenizer((_GPT2,)): ("gpt-2", "phi-2", "olmo", "mpt", "jais", "roberta-bpe"),
    PreTokenizer((r"\p{N}", _GPT2)): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
    PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos_token=True): (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
    ),
    PreTokenizer((_LLAMA3,)): ("dbrx", "smaug-bpe"),
    PreTokenizer((_QWEN2,)): ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"),
    PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos_token=True): ("tekken",),
}
_BY_NAME = {name: kind for kind, names in _KINDS.items() for name in names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer that a GGUF file calls ``name``; ``ModelError`` for one that is not known.

    A wrong guess would only make the model quietly worse, so there is none.
    """
    if name not in _BY_NAME:
        known = ", ".join(sorted(_BY_NAME))
        raise ModelError(f"pre-tokenizer {name!r:.60} is not supported{nearest(name, _BY_NAME)}; accepted: {known}")
    return _BY_NAME[name]


def pre_tokenizer_name(patterns: tuple[str, ...], ignore_merges: bool) -> str | None:
    """What a GGUF file calls the pre-tokenizer with these patterns; None if it is not one of those known here."""
    for kind, names in _KINDS.items():
        if (kind.patterns, kind.ignore_merges) == (patterns, ignore_merges):
            return names[0]
    return None


GPT2_PATTERN = _GPT2
"""What the tokenizers library's own byte-level pre-tokenizer splits by."""
