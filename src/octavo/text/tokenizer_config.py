"""What Hugging Face keeps beside the vocabulary: special tokens, whether BOS is added, the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ModelError

MAX_CONFIG_BYTES = 32 << 20
"""Far above any real tokenizer_config.json, and small enough to read at once."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text before the vocabulary's own rules run.

    ``lstrip`` and ``rstrip`` make it swallow the white space on that side.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Conventions that hold beside a vocabulary.

    Attributes:
        add_bos_token, add_eos_token: whether encoding adds them; None leaves it to the vocabulary file.
        add_prefix_space: whether SentencePiece's dummy prefix is wanted; None: as the vocabulary file has it.
        legacy: the dummy prefix comes after every special token too, not only at the start of the text.
        added_tokens: id -> token, beyond what the vocabulary file has.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool = False
    added_tokens: Mapping[int, AddedToken]
    chat_template: str | None = None


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read ``tokenizer_config.json`` and its companions; a folder that has none of them gives the defaults.

    Raises:
        ModelError: a file is there but is no JSON object of the expected shape.
    """
    path = folder / "tokenizer_config.json"
    raw = {**_read_object(folder / "special_tokens_map.json"), **_read_object(path)}
    return TokenizerConfig(
        bos_token=_token_text(path, raw, "bos_token"),
        eos_token=_token_text(path, raw, "eos_token"),
        unk_token=_token_text(path, raw, "unk_token"),
        add_bos_token=_flag(path, raw, "add_bos_token"),
        add_eos_token=_flag(path, raw, "add_eos_token"),
        add_prefix_space=_flag(path, raw, "add_prefix_space"),
        legacy=_flag(path, raw, "legacy") or False,
        added_tokens=_added_tokens(path, raw, _read_object(folder / "added_tokens.json")),
        chat_template=_chat_template(path, raw),
    )


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The file's bytes; ``ModelError`` when it cannot be read or is larger than any honest one."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ModelError(f"{path}: {size} bytes is too large for this file; at most {max_bytes} are accepted")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_limited(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        raise ModelError(f"{path}: not JSON; accepted: one JSON object") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a JSON {type(value).__name__}; accepted: one JSON object")
    return value


def _token_text(path: Path, raw: dict[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{path}: {key} is {value!r:.60}; accepted: a string, an object with content, or null")
    return value or None


def _flag(path: Path, raw: dict[str, Any], key: str) -> bool | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{path}: {key} is {value!r:.60}; accepted: true, false or null")
    return value


def _added_tokens(path: Path, raw: dict[str, Any], legacy: dict[str, Any]) -> dict[int, AddedToken]:
    """``added_tokens_decoder`` (id -> token) and the older ``added_tokens.json`` (text -> id), by id."""
    try:
        tokens = {_token_id(i): AddedToken(text, special=True) for text, i in legacy.items()}
        added = raw.get("added_tokens_decoder")
        for key, value in ({} if added is None else added).items():
            tokens[_token_id(key)] = _added_token(value)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise ModelError(f"{path}: added_tokens_decoder is damaged; accepted: id -> object with content") from None
    return dict(sorted(tokens.items()))


def _token_id(value: str | int) -> int:
    token_id = int(value)
    if not 0 <= token_id < 2**31:
        raise ValueError(value)
    return token_id


def _added_token(value: dict[str, Any]) -> AddedToken:
    content = value["content"]
    if not isinstance(content, str) or not content:
        raise TypeError(content)
    flags = {k: bool(value.get(k, False)) for k in ("special", "lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(content, **flags)


def _chat_template(config_path: Path, raw: dict[str, Any]) -> str | None:
    """``chat_template.jinja`` if there, else the config's string, or its list's one named "default"."""
    file = config_path.parent / "chat_template.jinja"
    if file.is_file():
        return read_limited(file, MAX_CONFIG_BYTES).decode("utf-8", "replace")
    value = raw.get("chat_template")
    if isinstance(value, list):
        value = _named_template(value)
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{config_path}: chat_template is damaged; accepted: a string, or a list of name and template")
    return value


def _named_template(templates: list[Any]) -> Any:
    by_name = {t.get("name"): t.get("template") for t in templates if isinstance(t, dict)}
    return by_name.get("default", next(iter(by_name.values()), None))
