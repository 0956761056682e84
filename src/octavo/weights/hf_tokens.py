"""What the files beside ``config.json`` say of sampling, and of the tokens that end an answer."""

from __future__ import annotations

from pathlib import Path

from octavo.weights.checkpoint import GenerationDefaults
from octavo.weights.hf_json import (
    AddedToken,
    GenerationJson,
    TokenIds,
    TokenizerConfigJson,
    TokenizerJson,
    read_json,
)

_MAX_TOKENIZER_BYTES = 256 << 20


def read_generation(folder: Path) -> GenerationJson:
    """Read ``generation_config.json``; a folder without one says nothing."""
    path = folder / "generation_config.json"
    return read_json(path, GenerationJson) if path.exists() else GenerationJson()


def generation_defaults(generation: GenerationJson) -> GenerationDefaults:
    return GenerationDefaults(
        temperature=generation.temperature,
        top_k=generation.top_k,
        top_p=generation.top_p,
        min_p=generation.min_p,
        repetition_penalty=generation.repetition_penalty,
    )


def eos_token_ids(vocab_size: int, *sources: TokenIds) -> tuple[int, ...]:
    """Join the EOS ids of several files, each once, in the order of the files."""
    return tuple(dict.fromkeys(token for ids in sources for token in known_tokens(vocab_size, ids)))


def known_tokens(vocab_size: int, ids: TokenIds) -> list[int]:
    """The ids that are in the vocabulary. Others (-1, or what a shrunk model inherited) can never be
    sampled."""
    ids = [ids] if isinstance(ids, int) else ids or []
    return [token for token in ids if 0 <= token < vocab_size]


def tokenizer_eos(folder: Path) -> int | None:
    """The id of the ``eos_token`` that ``tokenizer_config.json`` names: a chat model's end of turn, where
    its makers forgot to put that into the config. None if the files do not tell."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return None
    config = read_json(path, TokenizerConfigJson)
    eos = config.eos_token.content if isinstance(config.eos_token, AddedToken) else config.eos_token
    return None if eos is None else _added_tokens(folder, config).get(eos)


def _added_tokens(folder: Path, config: TokenizerConfigJson) -> dict[str, int]:
    """Special token -> id, from whichever of the two files has them."""
    if config.added_tokens_decoder:
        return {t.content: int(i) for i, t in config.added_tokens_decoder.items() if i.isdecimal() and len(i) < 10}
    path = folder / "tokenizer.json"
    if not path.exists():
        return {}
    tokens = read_json(path, TokenizerJson, _MAX_TOKENIZER_BYTES).added_tokens
    return {token.content: token.id for token in tokens if token.id is not None}
