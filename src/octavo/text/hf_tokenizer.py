"""Tokenizers that the ``tokenizers`` library runs: ``tokenizer.json``, or built from other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tokenizers

from octavo.errors import ModelError, RequestError
from octavo.text.token_bytes import byte_level_bytes, sentencepiece_bytes, spaced_word_bytes
from octavo.text.tokenizer import Tokenizer
from octavo.text.tokenizer_config import TokenizerConfig, read_limited, read_tokenizer_config

MAX_TOKENIZER_BYTES = 256 << 20
"""The largest vocabularies in use (256 k tokens) take about 35 MB as JSON."""


class HFTokenizer(Tokenizer):
    """A ``tokenizers.Tokenizer`` behind the engine's interface.

    With neither ``add_bos_token`` nor ``add_eos_token`` in the config, the file's own post-processor adds
    them.

    Raises:
        ModelError: its decoder is of a kind whose tokens do not stand for fixed bytes.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        backend.no_truncation()
        backend.no_padding()
        _mark_special(backend, (config.bos_token, config.eos_token))
        self._backend = backend
        self._write_token, strips_leading_space = _decoder_of(backend)
        special = (i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        super().__init__(config, special, strips_leading_space)
        self._own_post_processor = config.add_bos_token is None and config.add_eos_token is None
        self._prefix = [self.bos_token_id] if config.add_bos_token and self.bos_token_id is not None else []
        self._suffix = [self.eos_token_id] if config.add_eos_token and self.eos_token_id is not None else []

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def to_json(self) -> str:
        """The text of a ``tokenizer.json`` with the same vocabulary and rules."""
        return self._backend.to_str()

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        wrap = add_special_tokens and not self._own_post_processor
        try:
            ids = self._backend.encode(text, add_special_tokens=add_special_tokens and not wrap).ids
        except Exception as error:
            raise RequestError(f"the model's tokenizer cannot encode this text ({_first_line(error)})") from None
        return [*self._prefix, *ids, *self._suffix] if wrap else ids

    def _write(self, token: str) -> bytes:
        return self._write_token(token)


def load_hf_tokenizer(path: Path) -> HFTokenizer:
    """Read ``tokenizer.json`` at ``path`` and the configuration files beside it.

    As in Transformers, its post-processor alone says whether BOS and EOS are added.

    Raises:
        ModelError: a file is damaged, or two of them contradict each other.
    """
    backend = _read_backend(path)
    config = replace(read_tokenizer_config(path.parent), add_bos_token=None, add_eos_token=None)
    _add_missing_tokens(path, backend, config)
    return HFTokenizer(backend, config)


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    """Read the file, and encode one letter: some damage makes the library panic only then."""
    data = read_limited(path, MAX_TOKENIZER_BYTES)
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
        backend.encode("a")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        reason = _first_line(error)
        raise ModelError(f"{path}: damaged ({reason}); accepted: a file of the tokenizers library") from None
    return backend


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def _add_missing_tokens(path: Path, backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Add what only ``tokenizer_config.json`` knows, each at the id that it names."""
    for token_id, token in config.added_tokens.items():
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([tokenizers.AddedToken(**asdict(token))])
        if (found := backend.token_to_id(token.content)) != token_id:
            raise ModelError(f"{path}: {token.content!r:.60} has id {found} here, {token_id} in tokenizer_config.json")


def _mark_special(backend: tokenizers.Tokenizer, names: tuple[str | None, ...]) -> None:
    """BOS and EOS are special even where the file lists them as ordinary words of the vocabulary."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [n for n in names if n and n not in known and backend.token_to_id(n) is not None]
    backend.add_special_tokens([tokenizers.AddedToken(n, special=True, normalized=False) for n in missing])


def _decoder_of(backend: tokenizers.Tokenizer) -> tuple[Callable[[str], bytes], bool]:
    """How this tokenizer's tokens stand for bytes, and whether the text loses one leading space."""
    if backend.decoder is None:
        return spaced_word_bytes, True
    steps = _flatten(json.loads(backend.decoder.__getstate__()))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return byte_level_bytes, False
    if kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and all(map(_writes_spaces, steps)):
        return sentencepiece_bytes, any(map(_strips_space, steps))
    raise ModelError(
        f"tokenizer decoder {'+'.join(sorted(kinds))} is not supported; accepted: ByteLevel, SentencePiece's"
    )


def _flatten(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for child in state["decoders"] for step in _flatten(child)]


def _writes_spaces(step: dict[str, Any]) -> bool:
    """Whether a ``Replace`` is the usual one, "▁" to a space (other steps: yes)."""
    return step["type"] != "Replace" or (step["pattern"], step["content"]) == ({"String": "▁"}, " ")


def _strips_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return step["type"] == "Strip" and step["start"] > 0
